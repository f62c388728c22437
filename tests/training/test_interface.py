"""A run finds out what its model takes and returns, and that saving keeps it."""

import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import distcnn
from distcnn.errors import DistcnnError
from distcnn.inference.classifier import load_classifier
from distcnn.training.trainer import Trainer
from tests.runs import rows, small_config, small_run


def reshaped(
    input_shape: tuple[int, int, int], num_classes: int, activation: str | None = "softmax"
) -> keras.Model:
    """A model that ends with a layer after its softmax."""
    images = keras.Input(input_shape)
    x = layers.Flatten()(layers.AveragePooling2D(4)(images))
    x = layers.Dense(32, activation="relu")(x)
    x = layers.Dense(num_classes, activation=activation)(x)
    return keras.Model(images, layers.Reshape((num_classes,))(x))


def rescaling(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that scales pixels by itself."""
    images = keras.Input(input_shape)
    x = layers.Rescaling(1 / 127.5, -1)(images)
    return keras.Model(images, reshaped(input_shape, num_classes)(x))


class Forgetful(layers.Layer):
    """Does not save its argument."""

    def __init__(self, factor: float = 1.0, **keywords: Any) -> None:
        super().__init__(**keywords)
        self.factor = factor

    def call(self, x: Any) -> Any:
        return self.factor * x

    def get_config(self) -> dict[str, Any]:
        return super().get_config()


def forgetting(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that is another one after saving and loading."""
    images = keras.Input(input_shape)
    return keras.Model(images, reshaped(input_shape, num_classes)(Forgetful(3.0)(images)))


DIGITS: dict[str, Any] = {
    "data__name": "digits",
    "data__augment__crop": 0,
    "data__augment__flip": False,
    "optimizer__lr": 0.005,
    "train__epochs": 3,
}


def here(name: str) -> str:
    return f"tests.training.test_interface:{name}"


@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_softmax_before_the_last_layer_is_not_applied_twice(tmp_path, policy, caplog):
    """Twice applied, the most certain of 10 answers is e / (e + 9), whose loss is 1.46."""
    caplog.set_level("INFO", "distcnn")
    try:
        summary = small_run(
            tmp_path / "run",
            model__factory=here("reshaped"),
            **DIGITS,
            precision__policy=policy,
        )
    finally:
        keras.config.set_dtype_policy("float32")
    assert "output          probabilities (rows sum to 1)" in caplog.text
    assert summary["output"] == "probabilities"
    assert rows(tmp_path / "run")[-1]["loss"] < 0.8
    result = distcnn.evaluate(tmp_path / "run")
    assert result.loss == pytest.approx(summary["test_loss"], rel=1e-2)
    np.testing.assert_allclose(result.probabilities.sum(axis=1), 1, atol=0.01)


def test_pixels_are_scaled_once_in_training_evaluation_and_prediction(tmp_path, caplog):
    caplog.set_level("INFO", "distcnn")
    run = tmp_path / "run"
    summary = small_run(run, model__factory=here("rescaling"), **DIGITS)
    assert "pixels          byte (the model scales pixels by itself)" in caplog.text
    assert summary["pixels"] == "byte"
    resolved = json.loads((run / "environment.json").read_text())["resolved"]
    assert (resolved["pixels"], resolved["output"]) == ("byte", "probabilities")
    assert load_classifier(run).metadata.pixels == "byte"
    assert rows(run)[-1]["loss"] < 0.8
    assert distcnn.evaluate(run).loss == pytest.approx(summary["test_loss"], rel=1e-4)


def test_an_explicit_range_that_the_model_contradicts_is_warned_of(tmp_path, caplog):
    config = small_config(tmp_path / "run", model__factory=here("rescaling"), data__pixels="unit")
    assert Trainer(config).setup.interface.pixels == "unit"
    assert "data.pixels is unit, but byte is expected" in caplog.text


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__factory": here("forgetting")}, "factor of layer 'forgetful"),
        (
            {"model__factory": here("reshaped"), "model__args": {"activation": "sigmoid"}},
            "ends with sigmoid",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_written(tmp_path, overrides, message):
    with pytest.raises(DistcnnError, match=message):
        Trainer(small_config(tmp_path / "run", **overrides))
    assert not Path(tmp_path / "run").exists()
