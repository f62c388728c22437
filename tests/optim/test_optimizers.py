import subprocess
import sys

import keras
import numpy as np
import pytest

from distcnn.config import OptimizerConfig
from distcnn.models.depth import rate_factors
from distcnn.optim.lars import Lars
from distcnn.optim.optimizers import Schedule, build_optimizer, learning_rate, scaled_learning_rate
from distcnn.training.trainer import Trainer
from tests.runs import small_config, small_run
from tests.tiny import tiny


@pytest.mark.parametrize(("rule", "expected"), [("none", 0.1), ("linear", 0.4), ("sqrt", 0.2)])
def test_the_rate_scales_with_the_global_batch(rule, expected):
    config = OptimizerConfig(lr=0.1, lr_scaling=rule, base_batch_size=64)
    assert scaled_learning_rate(config, 256) == pytest.approx(expected)


def rates(config: OptimizerConfig, steps_per_epoch: int = 10, total: int = 100) -> np.ndarray:
    rate = learning_rate(config, 1.0, steps_per_epoch, total)
    assert isinstance(rate, Schedule)
    return np.array([float(rate(step)) for step in range(total + 1)])


def test_constant_is_a_plain_number_that_callbacks_can_set():
    assert learning_rate(OptimizerConfig(), 0.5, 10, 100) == 0.5


def test_cosine_decays_from_the_peak_to_its_final_fraction():
    found = rates(OptimizerConfig(schedule="cosine", final_lr_factor=0.1))
    assert found[0] == 1
    assert found[50] == pytest.approx(0.55)
    assert found[100] == pytest.approx(0.1)
    assert (np.diff(found) < 1e-7).all()


def test_warm_up_rises_linearly_and_reaches_the_peak():
    found = rates(OptimizerConfig(lr=1.0, schedule="cosine", warmup_epochs=2))
    np.testing.assert_allclose(found[:20], np.arange(1, 21) / 20, rtol=1e-6)
    assert found[20] == 1
    assert found[100] == pytest.approx(0, abs=1e-7)
    constant = rates(OptimizerConfig(lr=1.0, warmup_epochs=0.5))
    np.testing.assert_allclose(constant[:6], [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)


def test_warm_up_to_a_scaled_rate_begins_at_the_base_rate():
    """As in Goyal et al. 2017; here from 0.25 to four times that rate."""
    found = rates(OptimizerConfig(lr=0.25, warmup_epochs=1))
    np.testing.assert_allclose(found[:10], 0.25 + 0.075 * np.arange(1, 11), rtol=1e-6)
    assert found[10] == found[100] == 1


def test_lars_scales_the_step_of_each_kernel():
    kernel, bias = keras.Variable(np.full((2, 2), 3.0)), keras.Variable(np.full(2, 3.0))
    optimizer = Lars(learning_rate=0.5, momentum=0.9, weight_decay=0.01, trust=0.1)
    optimizer.build([kernel, bias])
    gradient = np.full((2, 2), 4.0)
    optimizer.apply([gradient, np.full(2, 4.0)])
    # |w| = 6, |g| = 8
    step = 0.5 * 0.1 * 6 / (8 + 0.01 * 6) * (4 + 0.01 * 3)
    np.testing.assert_allclose(kernel, 3 - step, rtol=1e-6)
    np.testing.assert_allclose(bias, 3 - 0.5 * 4, rtol=1e-6)
    before = np.array(kernel)
    optimizer.apply([np.zeros((2, 2)), np.zeros(2)])
    assert (np.array(kernel) < before).all()  # moved by the momentum


@pytest.mark.parametrize("name", ["lars", "lamb"])
def test_large_batch_optimizers_train_and_are_saved_for_plain_keras(name, tmp_path):
    run = tmp_path / "run"
    summary = small_run(run, optimizer__name=name, optimizer__weight_decay=1e-4)
    assert np.isfinite(summary["loss"])
    code = "import keras, sys; keras.saving.load_model(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, run / "model.keras"], check=True, cwd="/", env={})


def test_a_file_of_model_checkpoint_loads_with_its_optimizer(tmp_path):
    file = tmp_path / "saved.keras"
    config = small_config(
        tmp_path / "run", optimizer__name="lars", optimizer__schedule="cosine", train__epochs=1
    )
    Trainer(config, [keras.callbacks.ModelCheckpoint(file)]).fit()
    code = """
import sys
import distcnn.optim.optimizers
import keras
optimizer = keras.saving.load_model(sys.argv[1]).optimizer
print(type(optimizer).__name__, int(optimizer.iterations) > 0, len(optimizer.variables) > 4)
"""
    command = [sys.executable, "-W", "error::UserWarning", "-c", code, file]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout == "Lars True True\n"


def test_one_cycle_rises_over_three_tenths_and_falls():
    found = rates(OptimizerConfig(schedule="one_cycle"))
    assert found.argmax() in (29, 30)
    assert found.max() == pytest.approx(1)
    assert found[100] == pytest.approx(0, abs=1e-7)


def test_steps_multiply_at_their_epochs():
    found = rates(OptimizerConfig(schedule="step", step_epochs=[3, 6.5], step_factor=0.5))
    np.testing.assert_allclose(found[[0, 29, 30, 64, 65, 100]], [1, 1, 0.5, 0.5, 0.25, 0.25])


def test_weight_decay_leaves_biases_and_normalisation_alone():
    model = tiny((8, 8, 3), 4)
    config = OptimizerConfig(name="adamw", weight_decay=0.5)
    optimizer = build_optimizer(config, 0.1, model, "float32")
    before = [np.array(v) for v in model.trainable_variables]
    optimizer.apply([keras.ops.zeros_like(v) for v in model.trainable_variables])
    for old, variable in zip(before, model.trainable_variables, strict=True):
        expected = old * (1 - 0.1 * 0.5) if variable.ndim > 1 else old
        np.testing.assert_allclose(np.array(variable), expected, rtol=1e-6)


def test_clipping_is_by_the_global_norm():
    model = tiny((8, 8, 3), 4)
    config = OptimizerConfig(name="sgd", momentum=0, clip_norm=1.0)
    optimizer = build_optimizer(config, 1.0, model, "float32")
    before = [np.array(v) for v in model.trainable_variables]
    optimizer.apply([keras.ops.ones_like(v) for v in model.trainable_variables])
    moved = [b - np.array(v) for b, v in zip(before, model.trainable_variables, strict=True)]
    assert np.sqrt(sum((m**2).sum() for m in moved)) == pytest.approx(1, rel=1e-5)


def test_float16_skips_a_step_that_overflows_and_lowers_the_scale():
    model = tiny((8, 8, 3), 4)
    optimizer = build_optimizer(OptimizerConfig(), 0.1, model, "mixed_float16")
    before, scale = model.get_weights(), float(optimizer.dynamic_scale)
    bad = [keras.ops.full_like(v, np.inf) for v in model.trainable_variables]
    optimizer.apply(bad)
    assert float(optimizer.dynamic_scale) == scale / 2
    for old, new in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(old, new)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", ["sgd", "adam", "lars"])
def test_biases_have_a_learning_rate_of_their_own(name, fused):
    """Weight decay aside, a factor on the rate is the same as another rate for the vectors."""
    moved = {}
    for factor, rate in ((1.0, 0.01), (8.0, 0.01), (1.0, 0.08)):
        model = keras.Sequential(
            [keras.Input((3,)), keras.layers.Dense(2, bias_initializer="ones")]
        )
        model.layers[0].kernel.assign(np.full((3, 2), 0.5))
        config = OptimizerConfig(name=name, bias_lr_factor=factor)
        optimizer = build_optimizer(config, rate, model, "float32", fused=fused)
        for _ in range(3):
            optimizer.apply([np.full((3, 2), 0.3, np.float32), np.full(2, 0.2, np.float32)])
        moved[factor, rate] = [variable.numpy() for variable in model.trainable_variables]
    np.testing.assert_allclose(moved[8.0, 0.01][0], moved[1.0, 0.01][0], rtol=1e-6)
    np.testing.assert_allclose(moved[8.0, 0.01][1], moved[1.0, 0.08][1], rtol=1e-6)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("policy", ["float32", "mixed_float16"])
def test_layer_decay_lowers_rate_and_decay_of_each_layer_before_the_head(fused, policy):
    dense = [keras.layers.Dense(3, name=name) for name in ("first", "second", "head")]
    model = keras.Sequential([keras.Input((2,)), dense[0], dense[1], dense[2]])
    before = [variable.numpy() for variable in model.trainable_variables]
    config = OptimizerConfig(name="sgd", lr=0.5, momentum=0.0, weight_decay=0.1, bias_lr_factor=2)
    factors = rate_factors(model, 0.25)
    optimizer = build_optimizer(config, 0.5, model, policy, fused=fused, factors=factors)
    gradients = [np.full(variable.shape, 1.0, np.float32) for variable in model.trainable_variables]
    scale = float(optimizer.scale_loss(np.float32(1.0)))
    optimizer.apply([keras.ops.convert_to_tensor(scale * gradient) for gradient in gradients])
    for index, variable in enumerate(model.trainable_variables):
        rate = 0.5 * 0.25 ** (2 - index // 2)
        is_bias = index % 2 == 1
        expected = before[index] - rate * 2 if is_bias else before[index] * (1 - 0.1 * rate) - rate
        np.testing.assert_allclose(variable.numpy(), expected, rtol=1e-6, atol=1e-6)
