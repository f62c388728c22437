import keras
import numpy as np
import pytest

from distcnn.config import OptimizerConfig
from distcnn.optimizer import Schedule, build_optimizer, learning_rate, scaled_learning_rate
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


def test_cosine_falls_from_the_peak_to_its_final_share():
    found = rates(OptimizerConfig(schedule="cosine", final_lr_factor=0.1))
    assert found[0] == 1
    assert found[50] == pytest.approx(0.55)
    assert found[100] == pytest.approx(0.1)
    assert (np.diff(found) < 1e-7).all()


def test_warm_up_rises_linearly_and_reaches_the_peak():
    found = rates(OptimizerConfig(schedule="cosine", warmup_epochs=2))
    np.testing.assert_allclose(found[:20], np.arange(1, 21) / 20, rtol=1e-6)
    assert found[20] == 1
    assert found[100] == pytest.approx(0, abs=1e-7)
    constant = rates(OptimizerConfig(warmup_epochs=0.5))
    np.testing.assert_allclose(constant[:6], [0.2, 0.4, 0.6, 0.8, 1, 1], rtol=1e-6)


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
