"""The models of other frameworks train as the Keras models do, where they are installed."""

import re
from pathlib import Path

import keras
import numpy as np
import pytest

from distcnn.benchmarking.peers.side import Task
from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.progress import Budget
from distcnn.config import OptimizerConfig
from distcnn.models.article import article
from distcnn.models.compact import compact
from distcnn.optim.optimizers import plain_optimizer

SHAPE = (16, 16, 3)
BATCH = 8
CLASSES = 10
STEPS = {"article": 3, "compact": 3, "resnet50": 1}


def keras_model(name: str) -> keras.Model:
    """Builds a model without dropout."""
    keras.utils.set_random_seed(3)
    if name == "article":
        model = article(SHAPE, CLASSES, dropout=0.0)
    elif name == "compact":
        model = compact(SHAPE, CLASSES)
    else:
        shape = (32, 32, 3)
        model = keras.applications.ResNet50(weights=None, input_shape=shape, classes=CLASSES)
    return model


def spec_of(model: keras.Model) -> PeerSpec:
    return PeerSpec(
        model=model.name,
        parameters=model.count_params(),
        image_shape=model.input_shape[1:],
        classes=CLASSES,
        batch=BATCH,
        precision="float32",
        optimizer="adam" if model.name == "article" else "sgd",
        learning_rate=1e-3,
        momentum=0.9,
        dropout=0.0,
        pixel_scale=1 / 255,
        pixel_offset=0.0,
    )


def batch_of(spec: PeerSpec) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (BATCH, *spec.image_shape), np.uint8)
    return images, np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, BATCH)]


def task_of(spec: PeerSpec, folder: Path) -> Task:
    task = Task(side="", config="", folder=folder, describe=False, cores=1, budget=Budget(0.0))
    spec.write(task.spec_file)
    task.write_batch(*batch_of(spec))
    return task


def layers_of(model: keras.Model, *, shortcut_first: bool) -> list[keras.layers.Layer]:
    """Returns the layers with weights in the order in which the other models have them."""

    def order(numbered: tuple[int, keras.layers.Layer]) -> tuple[int, ...]:
        number, layer = numbered
        found = re.fullmatch(r"conv(\d)_block(\d)_(\d)_(conv|bn)", layer.name)
        if not found:
            ends = {"conv1_conv": 0, "conv1_bn": 1, "predictions": 99}
            return (ends.get(layer.name, 0), number)
        stage, block, position = map(int, found.groups()[:3])
        last = 9 if position == 0 and not shortcut_first else position
        return (stage, block, last, found[4] == "bn")

    layers = [layer for layer in model.layers if layer.weights]
    return [layer for _, layer in sorted(enumerate(layers), key=order)]


def train_keras(model: keras.Model, spec: PeerSpec, steps: int) -> list[float]:
    images, labels = batch_of(spec)
    config = OptimizerConfig(name=spec.optimizer, lr=spec.learning_rate, momentum=spec.momentum)
    model.compile(plain_optimizer(config, config.lr, model), "categorical_crossentropy")
    scaled = images / np.float32(255)
    fit = {"batch_size": BATCH, "shuffle": False, "verbose": 0}
    return [model.fit(scaled, labels, **fit).history["loss"][0] for _ in range(steps)]


def assert_close(losses: list[float], expected: list[float]) -> None:
    """The first losses are those of the same weights; rounding then grows with every step."""
    assert losses[0] == pytest.approx(expected[0], rel=1e-4)
    assert losses == pytest.approx(expected, rel=2e-2)


@pytest.mark.parametrize("name", ["article", "compact", "resnet50"])
def test_torch_trains_as_keras_does(name, tmp_path):
    torch = pytest.importorskip("torch")
    from distcnn.benchmarking.peers.torch_side import TorchSide

    model = keras_model(name)
    spec = spec_of(model)
    side = TorchSide(task_of(spec, tmp_path), lambda _: None, tuning=False)
    assert side.parameters == spec.parameters
    arrays = []
    for layer in layers_of(model, shortcut_first=False):
        kernel, *rest = layer.get_weights()
        axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[kernel.ndim]
        arrays += [_as_torch_orders(kernel.transpose(axes), layer, model), *rest]
    state = side.model.state_dict()
    keys = [key for key in state if not key.endswith("num_batches_tracked")]
    for key, array in zip(keys, arrays, strict=True):
        state[key] = torch.from_numpy(np.ascontiguousarray(array))
    side.model.load_state_dict(state)
    side.optimizer.state.clear()  # trying the step has trained
    losses = []
    for _ in range(STEPS[name]):
        side.run(1)
        losses.append(side.loss())
    assert_close(losses, train_keras(model, spec, STEPS[name]))


def _as_torch_orders(kernel: np.ndarray, layer: keras.layers.Layer, model: keras.Model):
    """Reorders the inputs of a dense layer after a flattened image: PyTorch flattens NCHW."""
    if model.name != "article" or kernel.shape != (256, 128 * 16):
        return kernel
    return kernel.reshape(256, 4, 4, 128).transpose(0, 3, 1, 2).reshape(kernel.shape)


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("article", "Layers"),
        ("article", "ShiftedLayers"),
        ("compact", "Layers"),
        ("resnet50", "Layers"),
    ],
)
def test_jax_trains_as_keras_does(name, form, tmp_path):
    jax = pytest.importorskip("jax")
    from distcnn.benchmarking.peers import jax_models, jax_side

    model = keras_model(name)
    spec = spec_of(model)
    weights, statistics = jax_side.initial_weights(spec)
    sizes = [array.size for array in jax.tree.leaves((weights, statistics))]
    assert sum(sizes) == spec.parameters
    groups: dict[str, list[str]] = {}
    for key in sorted({**weights, **statistics}, key=_call_number):
        groups.setdefault(key.partition("/")[0], []).append(key)
    layers = layers_of(model, shortcut_first=True)
    for prefix, layer in zip(groups, layers, strict=True):
        parts = ("scale", "offset", "mean", "variance")
        names = parts if prefix.startswith("norm") else ("kernel", "bias")
        for part, value in zip(names, layer.get_weights(), strict=False):
            target = weights if f"{prefix}/{part}" in weights else statistics
            assert target[f"{prefix}/{part}"].shape == value.shape
            target[f"{prefix}/{part}"] = jax.numpy.asarray(value)
    state = jax_side.initial_state(weights, statistics)
    step = jax_side.compiled_step(spec, getattr(jax_models, form))
    losses = []
    for _ in range(STEPS[name]):
        state, loss = step(state, *batch_of(spec))
        losses.append(float(loss))
    assert_close(losses, train_keras(model, spec, STEPS[name]))


def _call_number(key: str) -> int:
    found = re.match(r"[a-z]+(\d+)/", key)
    assert found
    return int(found[1])
