"""The models of other frameworks train as the Keras models do, where they are installed."""

import contextlib
import dataclasses
import importlib
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import layers

from distcnn.benchmarking.peers.keras_graph import graph_of, parameters_of
from distcnn.benchmarking.peers.side import Task
from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.progress import Budget
from distcnn.config import OptimizerConfig
from distcnn.errors import DistcnnError, UsageError
from distcnn.models.article import article
from distcnn.models.compact import compact
from distcnn.optim.optimizers import plain_optimizer

SHAPE = (16, 16, 3)
BATCH = 8
CLASSES = 10
STEPS = 3
MODELS = ("article", "compact", "blocks")


def keras_model(name: str) -> keras.Model:
    """Builds a model without dropout; `blocks` has what mobile and newer networks have."""
    keras.utils.set_random_seed(3)
    if name == "article":
        return article(SHAPE, CLASSES, dropout=0.0)
    return compact(SHAPE, CLASSES) if name == "compact" else blocks()


def blocks() -> keras.Model:
    images = keras.Input(SHAPE)
    x = layers.Rescaling(2.0, offset=-1.0)(images)
    x = layers.Normalization(mean=[0.1, 0.2, 0.3], variance=[0.5, 1.0, 2.0])(x)
    x = layers.ZeroPadding2D(((0, 1), (0, 1)))(x)
    x = layers.Conv2D(8, 3, strides=2, use_bias=False)(x)
    x = layers.Activation("hard_silu")(layers.BatchNormalization(scale=False)(x))
    x = layers.DepthwiseConv2D(3, strides=2, padding="same")(x)
    x = layers.ReLU(6.0)(layers.BatchNormalization(center=False)(x))
    squeezed = layers.GlobalAveragePooling2D(keepdims=True)(x)
    squeezed = layers.Conv2D(4, 1, activation="silu")(squeezed)
    squeezed = layers.Reshape((1, 1, 8))(layers.Conv2D(8, 1, activation="sigmoid")(squeezed))
    x = layers.Multiply()([x, squeezed])
    y = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 5, padding="same")(x))
    y = layers.Dense(8)(layers.Activation("gelu")(layers.Dense(16)(y)))
    x = layers.Add()([x, keras.Sequential([layers.Conv2D(8, 1, groups=2)])(y)])
    x = x + 3.0 * layers.MaxPooling2D(3, strides=1, padding="same")(x)
    x = layers.Concatenate()([layers.AveragePooling2D(2)(x), layers.MaxPooling2D(2)(x)])
    x = layers.Activation("tanh")(layers.GlobalMaxPooling2D()(x))
    return keras.Model(images, layers.Dense(CLASSES, activation="softmax")(x), name="blocks")


def spec_of(model: keras.Model) -> PeerSpec:
    return PeerSpec(
        model=model.name,
        parameters=parameters_of(model),
        image_shape=model.input_shape[1:],
        classes=CLASSES,
        batch=BATCH,
        precision="float32",
        optimizer="adam" if model.name == "article" else "sgd",
        learning_rate=1e-3,
        momentum=0.9,
        pixel_scale=1 / 255,
        pixel_offset=0.0,
        nodes=tuple(graph_of(model)),
    )


def batch_of(spec: PeerSpec) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(5)
    images = random.integers(0, 256, (BATCH, *spec.image_shape), np.uint8)
    return images, np.eye(CLASSES, dtype=np.float32)[random.integers(0, CLASSES, BATCH)]


def task_of(spec: PeerSpec, folder: Path) -> Task:
    task = Task(side="", config="", folder=folder, describe=False, cores=1, budget=Budget(0.0))
    spec.write(task.spec_file)
    task.write_batch(*batch_of(spec))
    assert task.spec() == spec
    return task


def layers_of(model: keras.Model) -> dict[str, keras.layers.Layer]:
    """Returns the layers by name, nested ones included."""
    found = {layer.name: layer for layer in model._flatten_layers(include_self=False)}
    return {name: layer for name, layer in found.items() if not isinstance(layer, keras.Model)}


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


@pytest.mark.parametrize("name", MODELS)
def test_torch_trains_as_keras_does(name, tmp_path):
    torch = pytest.importorskip("torch")
    from distcnn.benchmarking.peers.torch_side import TorchSide

    model = keras_model(name)
    spec = spec_of(model)
    side = TorchSide(task_of(spec, tmp_path), lambda _: None, tuning=False)
    assert side.parameters == spec.parameters
    found = layers_of(model)
    for name, module in side.model.layers.items():
        weights = dict(zip(_names(found[name]), found[name].get_weights(), strict=True))
        state = module.state_dict()
        for key, value in weights.items():
            axes = _torch_axes(value.ndim, depthwise="depthwise" in name)
            state[key] = torch.from_numpy(np.ascontiguousarray(value.transpose(axes))).reshape(
                state[key].shape
            )
        module.load_state_dict(state)
    side.optimizer.state.clear()  # trying the step has trained
    losses = []
    for _ in range(STEPS):
        side.run(1)
        losses.append(side.loss())
    assert_close(losses, train_keras(model, spec, STEPS))


@pytest.mark.parametrize("name", MODELS)
def test_torch_computes_on_the_device_of_the_images(name, monkeypatch):
    torch = pytest.importorskip("torch")
    # Autocast does not know the device that stands for a GPU here, which has shapes only.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    from distcnn.benchmarking.peers.torch_models import GraphModel

    spec = spec_of(keras_model(name))
    images = torch.empty((BATCH, *SHAPE), device="meta").permute(0, 3, 1, 2)
    logits = GraphModel(spec.nodes).to("meta")(images)
    assert logits.device.type == "meta"
    assert tuple(logits.shape) == (BATCH, CLASSES)


@pytest.mark.parametrize("name", ["torch", "jax"])
def test_a_peer_without_a_gpu_is_not_compared_with_a_run_on_one(name, tmp_path):
    pytest.importorskip(name)
    side = importlib.import_module(f"distcnn.benchmarking.peers.{name}_side")
    spec = dataclasses.replace(spec_of(keras_model("compact")), gpu="NVIDIA H100")
    with pytest.raises(DistcnnError, match=f"computes on NVIDIA H100, but {name} .* finds no GPU"):
        side.build(task_of(spec, tmp_path), lambda _: None)


_NAMES = {"kernel": "weight", "gamma": "weight", "beta": "bias"} | {
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def _names(layer: keras.layers.Layer) -> list[str]:
    """Returns PyTorch's names of a layer's weights."""
    return [_NAMES.get(weight.name, weight.name) for weight in layer.weights]


def _torch_axes(rank: int, *, depthwise: bool) -> tuple[int, ...]:
    if rank == 4:
        return (2, 3, 0, 1) if depthwise else (3, 2, 0, 1)
    return tuple(reversed(range(rank)))


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "Layers") for name in MODELS),
        ("article", "ShiftedLayers"),
        ("blocks", "ShiftedLayers"),
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
    for layer in layers_of(model).values():
        for weight in layer.weights:
            if isinstance(layer, keras.layers.Normalization):
                continue
            name = f"{layer.name}/{_JAX_NAMES.get(weight.name, weight.name)}"
            target = weights if name in weights else statistics
            target[name] = jax.numpy.asarray(weight.numpy()).reshape(target[name].shape)
    state = jax_side.initial_state(weights, statistics)
    step = jax_side.compiled_step(spec, getattr(jax_models, form))
    losses = []
    for _ in range(STEPS):
        state, loss = step(state, *batch_of(spec))
        losses.append(float(loss))
    assert_close(losses, train_keras(model, spec, STEPS))


_JAX_NAMES = {"gamma": "scale", "beta": "offset", "moving_mean": "mean"} | {
    "moving_variance": "variance"
}


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (layers.Conv2DTranspose(3, 2), "a Conv2DTranspose .* has no equivalent"),
        (layers.Activation("elu"), "an? Activation .* has no equivalent"),
        (layers.ReLU(1.0), "a ReLU .* has no equivalent"),
    ],
)
def test_a_layer_without_an_equivalent_is_named(layer, message):
    model = keras.Sequential([keras.Input(SHAPE), layer, layers.Flatten(), layers.Dense(2)])
    with pytest.raises(UsageError, match=message):
        graph_of(model)


def test_a_model_without_a_graph_is_named():
    class Own(keras.Model):
        pass

    with pytest.raises(UsageError, match=r"is a Own; .* Sequential and functional"):
        graph_of(Own(name="mine"))
