"""A model that saving would change, or that could not be loaded, is refused before training."""

import random
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from distcnn.config import ModelConfig
from distcnn.errors import DistcnnError
from distcnn.models.building import build_model
from distcnn.models.catalog import APPLICATIONS, MODELS
from distcnn.models.rebuilding import require_same_after_loading

IMAGES = np.random.default_rng(0).random((2, 6, 6, 3), np.float32)
HERE = ModelConfig(factory="tests.models.test_rebuilding:with_layer")


class Complete(layers.Layer):
    """Remembers its argument."""

    def __init__(self, factor: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return self.factor * x

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"factor": self.factor}


class Forgetful(Complete):
    """Does not save its argument, which has a default."""

    def get_config(self) -> dict[str, Any]:
        return layers.Layer.get_config(self)


class Demanding(layers.Layer):
    """Does not save its argument, which has no default."""

    def __init__(self, units: int, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.dense = layers.Dense(units)

    def call(self, x: Any) -> Any:
        return self.dense(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class Resized(layers.Layer):
    """Forgets a size of its weights."""

    def __init__(self, units: int = 2, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.units = units

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1], self.units))

    def call(self, x: Any) -> Any:
        return keras.ops.sum(x @ self.kernel, -1, keepdims=True)

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


class OwnDropout(Forgetful):
    """Forgets what matters in training only."""

    def call(self, x: Any, training: bool = False) -> Any:
        return self.factor * x if training else x


class Noisy(layers.Layer):
    """Random even in evaluation."""

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x))


class Block(keras.Model):
    """A subclassed model around a layer that forgets."""

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.dense = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.dense(x)


def relu(x: Any) -> Any:
    """Has the name of Keras' own, which loading takes instead."""
    return keras.ops.maximum(x, 0.5)


def with_layer(layer: Any, classes: int = 3) -> keras.Model:
    images = keras.Input((6, 6, 3))
    x = layer(layers.Flatten()(images))
    # A head of zeros, as is usual, must not hide what comes before it.
    return keras.Model(images, layers.Dense(classes, kernel_initializer="zeros")(x))


def nested(layer: Any) -> keras.Model:
    images = keras.Input((6, 6, 3))
    return keras.Model(images, layers.Softmax()(with_layer(layer)(images)))


BAD = {
    "forgotten default": (
        lambda: with_layer(Forgetful(3.0, name="scale")),
        r"another one after saving.*layer 'scale' \(Forgetful\) differ \(factor of layer 'scale' "
        r"\(Forgetful\) is 3\.0, then 1\.0\); let get_config",
    ),
    "in a nested model": (
        lambda: nested(Forgetful(3.0, name="scale")),
        r"another one after saving.*\(factor of layer 'scale' \(Forgetful\) is 3\.0, then 1\.0\)",
    ),
    "forgotten and required": (
        lambda: with_layer(Demanding(4, name="mine")),
        r"saved but not loaded: layer 'mine' \(Demanding\):.*'units'.*get_config",
    ),
    "required in a nested model": (
        lambda: nested(Demanding(4, name="mine")),
        r"saved but not loaded: layer 'mine' \(Demanding\):.*'units'",
    ),
    "other weights": (
        lambda: with_layer(Resized(5, name="mine")),
        r"weights do not fit.*units of layer 'mine' \(Resized\) is 5, then 2",
    ),
    "a function called like one of Keras": (
        lambda: with_layer(layers.Dense(4, activation=relu, name="mine")),
        r"another one after saving.*layer 'mine' \(Dense\) differ",
    ),
    "a function that is nowhere to be found": (
        lambda: with_layer(layers.Lambda(keras.ops.square, name="mine")),
        r"saved but not loaded: layer 'mine' \(Lambda\):.*'square'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_a_model_that_saving_changes_is_refused_with_the_layer(name):
    build, message = BAD[name]
    with pytest.raises(DistcnnError, match=message) as error:
        require_same_after_loading(HERE, build(), IMAGES)
    assert str(error.value).startswith(f"{HERE.factory} returned a model")
    assert "\n" not in str(error.value)


def drawn_so_far() -> tuple[Any, str]:
    return random.getstate(), str(np.random.get_state())


GOOD = {
    "own layer": lambda: with_layer(Complete(3.0)),
    "nested": lambda: nested(Complete(3.0)),
    "shared layer": lambda: shared(Complete(3.0)),
    "subclassed": lambda: with_layer(Block()),
    "dropout": lambda: with_layer(layers.Dropout(0.5)),
    "python lambda": lambda: with_layer(layers.Lambda(lambda x: 2 * x)),
    "compiled": lambda: compiled(with_layer(Complete(2.0))),
}


def shared(layer: Any) -> keras.Model:
    images = keras.Input((6, 6, 3))
    x = layer(layer(layers.Flatten()(images)))
    return keras.Model(images, layers.Dense(3)(x))


def compiled(model: keras.Model) -> keras.Model:
    model.compile("adam", "categorical_crossentropy")
    return model


@pytest.mark.parametrize("name", GOOD)
def test_what_saving_keeps_passes_and_nothing_is_changed(name, caplog):
    model = GOOD[name]()
    weights, drawn = model.get_weights(), drawn_so_far()
    require_same_after_loading(HERE, model, IMAGES)
    assert not caplog.text
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)
    assert drawn_so_far() == drawn


@pytest.mark.parametrize("path", [MODELS[name] for name in MODELS if name not in APPLICATIONS])
def test_the_built_in_models_are_the_same_after_loading(path):
    config = ModelConfig(factory=path)
    model = build_model(config, (32, 32, 3), 10)
    images = np.random.default_rng(0).random((2, 32, 32, 3), np.float32)
    require_same_after_loading(config, model, images)


def test_what_is_forgotten_but_changes_training_only_is_warned_of(caplog):
    require_same_after_loading(HERE, with_layer(OwnDropout(0.5, name="drop")), IMAGES)
    assert "factor of layer 'drop' (OwnDropout) is 0.5, then 1.0" in caplog.text


def test_a_random_output_is_not_taken_for_a_forgotten_argument(caplog):
    require_same_after_loading(HERE, with_layer(Noisy(name="noise")), IMAGES)
    assert "layer 'noise' (Noisy) vary by chance" in caplog.text


class L2(keras.regularizers.Regularizer):
    """Has the name of Keras' own."""

    def __init__(self, l2: float = 0.01) -> None:
        self.l2 = l2

    def __call__(self, x: Any) -> Any:
        return self.l2 * keras.ops.sum(keras.ops.abs(x))

    def get_config(self) -> dict[str, Any]:
        return {"l2": self.l2}


def test_an_own_class_with_the_name_of_one_of_keras_is_warned_of(caplog):
    model = with_layer(layers.Dense(3, kernel_regularizer=L2()))
    require_same_after_loading(HERE, model, IMAGES)
    assert "the class L2 has the name of one of Keras' own" in caplog.text
    caplog.clear()
    model = with_layer(layers.Dense(3, kernel_regularizer=keras.regularizers.L2()))
    require_same_after_loading(HERE, model, IMAGES)
    assert not caplog.text


def test_a_class_that_no_one_else_can_import_is_warned_of(caplog):
    class Local(Complete):
        pass

    require_same_after_loading(HERE, with_layer(Local(3.0)), IMAGES)
    assert "layer class Local is defined inside a function" in caplog.text
