"""Models that need the user's own code are loaded on request only, and then with all of it."""

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import yaml

from distcnn.config import ModelConfig
from distcnn.errors import DistcnnError, UsageError
from distcnn.inference.classifier import load_classifier
from distcnn.models.building import build_model
from distcnn.models.rebuilding import require_same_after_loading
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from tests.data.samples import encoded, pixels

MODULE = """
import keras
from keras import layers
from keras.ops import square
import pathlib
import blocks_{n}
from blocks_{n} import Imported, Renamed as Other, borrowed

pathlib.Path("ran_{n}").touch()

class Own(layers.Layer):
    def call(self, x):
        return 2 * x

class OwnModel(keras.Model):
    def __init__(self, **keywords):
        super().__init__(**keywords)
        self.dense = layers.Dense(3)
    def call(self, x):
        return self.dense(x)

def activation(x):
    return keras.ops.minimum(x, 3.0)

class OwnRegularizer(keras.regularizers.Regularizer):
    def __call__(self, w):
        return keras.ops.sum(w)
    def get_config(self):
        return {{}}

def regularizer(w):
    return keras.ops.sum(w)

class OwnConstraint(keras.constraints.Constraint):
    def __call__(self, w):
        return w

class OwnInitializer(keras.initializers.Initializer):
    def __call__(self, shape, dtype=None, **keywords):
        return keras.ops.ones(shape, dtype)

@keras.saving.register_keras_serializable("mine_{n}", "renamed")
class Registered(Own):
    pass

@keras.saving.register_keras_serializable("mine_{n}")
def registered(x):
    return keras.ops.minimum(x, 2.0)

def mean(x):
    return keras.ops.mean(x, axis=1, keepdims=True)

def shape(input_shape):
    return (input_shape[0], 1)

KINDS = {{
    "layer": lambda: Own(),
    "model": lambda: OwnModel(),
    "activation": lambda: layers.Dense(4, activation=activation),
    "activation layer": lambda: layers.Activation(activation),
    "regularizer": lambda: layers.Dense(4, kernel_regularizer=OwnRegularizer()),
    "regularizer function": lambda: layers.Dense(4, kernel_regularizer=regularizer),
    "constraint": lambda: layers.Dense(4, kernel_constraint=OwnConstraint()),
    "initializer": lambda: layers.Dense(4, kernel_initializer=OwnInitializer()),
    "registered class": lambda: Registered(),
    "registered function": lambda: layers.Activation(registered),
    "lambda layer": lambda: layers.Lambda(mean, output_shape=shape),
    "function of a library": lambda: layers.Lambda(square),
    "imported class": lambda: Imported(),
    "class under another name": lambda: Other(),
    "imported function": lambda: layers.Activation(borrowed),
    "class of an imported module": lambda: blocks_{n}.Unnamed(),
    "what an imported class uses": lambda: Imported(layers.Activation(blocks_{n}.inner)),
    "nested": lambda: keras.Sequential([keras.Input((48,)), Own(), layers.Activation(activation)]),
}}

def net(input_shape, num_classes, kind):
    images = keras.Input(input_shape)
    x = KINDS[kind]()(layers.Flatten()(images))
    return keras.Model(images, layers.Dense(num_classes, activation="softmax")(x))
"""

BLOCKS = """
import keras
from keras import layers

def inner(x):
    return keras.ops.minimum(x, 1.0)

class Imported(layers.Layer):
    def __init__(self, part=None, **keywords):
        super().__init__(**keywords)
        self.part = part or layers.Activation(inner)
    def call(self, x):
        return self.part(x)
    def get_config(self):
        part = keras.saving.serialize_keras_object(self.part)
        return super().get_config() | {"part": part}
    @classmethod
    def from_config(cls, config):
        part = keras.saving.deserialize_keras_object(config.pop("part"))
        return cls(part, **config)

class Renamed(layers.Layer):
    def call(self, x):
        return x + 1

class Unnamed(Renamed):
    pass

def borrowed(x):
    return keras.ops.minimum(x, 0.5)
"""

KINDS = [line.split('"')[1] for line in MODULE.splitlines() if line.startswith('    "')]


class Run:
    """A run directory whose model needs a module that this process has not imported."""

    numbers = iter(range(1000))

    def __init__(self, kind: str) -> None:
        self.number = next(self.numbers)
        self.module = f"mine_{self.number}"
        Path(f"{self.module}.py").write_text(MODULE.format(n=self.number))
        Path(f"blocks_{self.number}.py").write_text(BLOCKS)
        config = ModelConfig(factory=f"{self.module}:net", args={"kind": kind})
        self.model = build_model(config, (4, 4, 3), 2)
        self.images = np.random.default_rng(0).random((3, 4, 4, 3), np.float32)
        require_same_after_loading(config, self.model, self.images)
        self.outputs = self.model.predict(self.images, verbose=0)
        self.path = Path(f"run_{self.number}")
        self.path.mkdir()
        save_model(self.path / "model.keras", self.model, ModelMetadata(("a", "b")))
        settings = {"model": {"factory": config.factory}, "train": {"seed": 1}}
        (self.path / "config.yaml").write_text(yaml.safe_dump(settings))
        (self.path / "environment.json").write_text("{}")
        self.forget()

    def forget(self) -> None:
        for name in (self.module, f"blocks_{self.number}"):
            sys.modules.pop(name, None)
        registered = keras.saving.get_custom_objects()
        for name in [n for n in registered if not n.startswith("distcnn>")]:  # ours are in use
            del registered[name]
        Path(f"ran_{self.number}").unlink()

    @property
    def has_run(self) -> bool:
        return Path(f"ran_{self.number}").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_own_code_is_found_with_trust_and_not_run_without(kind):
    run = Run(kind)
    with pytest.raises(DistcnnError) as error:
        load_classifier(run.path)
    message = str(error.value)
    assert f"needs the user's own code from module {run.module}, which is not run" in message
    assert "--trust (in Python trust=True) runs it" in message
    assert "\n" not in message
    assert not run.has_run
    loaded = load_classifier(run.path, trust=True).model
    assert run.has_run
    np.testing.assert_allclose(loaded.predict(run.images, verbose=0), run.outputs, atol=1e-6)


def test_a_trusted_module_that_is_missing_is_named():
    run = Run("layer")
    Path(f"{run.module}.py").unlink()
    with pytest.raises(UsageError, match=f"there is no module '{run.module}'"):
        load_classifier(run.path, trust=True)


def test_a_damaged_model_is_not_taken_for_one_that_needs_code():
    run = Run("layer")
    file = run.path / "model.keras"
    file.write_bytes(file.read_bytes()[:200])
    for trust in (False, True):
        with pytest.raises(DistcnnError, match="is not a model that Keras can load"):
            load_classifier(run.path, trust=trust)
    assert not run.has_run


def with_lambda() -> keras.Model:
    images = keras.Input((4, 4, 3))
    x = keras.layers.Lambda(lambda x: 2 * x)(keras.layers.Flatten()(images))
    return keras.Model(images, keras.layers.Dense(2)(x))


def test_a_lambda_in_a_file_runs_on_request_only():
    with_lambda().save("lambda.keras")
    with pytest.raises(DistcnnError, match="not a model that Keras can load"):
        load_classifier(Path("lambda.keras"))
    assert load_classifier(Path("lambda.keras"), trust=True).metadata.logits


def test_keras_own_models_load_without_trust():
    """And the module of the factory is not imported for them."""
    run = Run("layer")
    images = keras.Input((4, 4, 3))
    outputs = keras.layers.Dense(2)(keras.layers.Flatten()(images))
    save_model(run.path / "model.keras", keras.Model(images, outputs), ModelMetadata(("a", "b")))
    load_classifier(run.path)
    assert not run.has_run


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_the_commands_have_the_flag(command, capsys):
    from distcnn import evaluate, predict  # noqa: F401 (functions of the same names)

    run = Run("activation")
    Path("a.png").write_bytes(encoded(pixels(8, 8), "PNG"))
    main: Any = sys.modules.get(f"distcnn.{command}") or __import__(
        f"distcnn.{command}", fromlist=["main"]
    )
    data = ["--data.name=folder", f"--data.dir={folder()}"] if command == "evaluate" else ["a.png"]
    with pytest.raises(DistcnnError, match="--trust"):
        main.main([str(run.path), *data])
    assert main.main([str(run.path), *data, "--trust"]) == 0
    assert capsys.readouterr().out


def folder() -> Path:
    root = Path("images")
    for part in ("train", "test"):
        for number, name in enumerate(("a", "b")):
            (root / part / name).mkdir(parents=True)
            (root / part / name / "0.png").write_bytes(encoded(pixels(8, 8, number), "PNG"))
    return root


@pytest.mark.parametrize("scaled", [True, False])
def test_a_file_of_plain_keras_gets_its_own_pixels_and_output(scaled):
    first = [keras.layers.Rescaling(1 / 255)] if scaled else []
    head = [keras.layers.Dense(2, activation="softmax"), keras.layers.Reshape((2,))]
    start = [keras.Input((4, 4, 3)), *first, keras.layers.Flatten()]
    keras.Sequential([*start, *head]).save("plain.keras")
    metadata = load_classifier(Path("plain.keras")).metadata
    assert (metadata.pixels, metadata.logits) == ("byte" if scaled else "unit", False)
