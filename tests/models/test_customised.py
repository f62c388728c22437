"""Models with customised training, which distcnn would ignore, are rejected."""

import logging
from typing import Any

import keras
import pytest
from keras import layers

from distcnn.config import ModelConfig
from distcnn.errors import DistcnnError
from distcnn.models.building import build_model
from distcnn.models.customised import require_plain_training


def graph(kind: type[keras.Model] = keras.Model) -> keras.Model:
    inputs = keras.Input((4, 4, 1))
    outputs = layers.Dense(3, activation="softmax")(layers.Flatten()(inputs))
    return kind(inputs, outputs)


def overriding(*names: str) -> type[keras.Model]:
    return type("Own", (keras.Model,), {name: lambda self, *a, **k: None for name in names})


@pytest.mark.parametrize("name", ["train_step", "test_step", "compute_loss", "compute_metrics"])
def test_an_overridden_method_is_refused(name):
    with pytest.raises(DistcnnError, match=rf"mine:net returned a Own, which overrides {name};"):
        require_plain_training("mine:net", graph(overriding(name)))


def test_all_overridden_methods_are_named():
    with pytest.raises(DistcnnError, match="overrides train_step, compute_loss;"):
        require_plain_training("mine:net", graph(overriding("compute_loss", "train_step")))


def test_an_inherited_override_counts():
    child = type("Child", (overriding("train_step"),), {})
    with pytest.raises(DistcnnError, match="returned a Child, which overrides train_step"):
        require_plain_training("mine:net", graph(child))


def own_loss(labels: Any, outputs: Any) -> Any:
    return keras.ops.mean(keras.ops.square(labels - outputs), axis=-1)


@pytest.mark.parametrize(
    ("loss", "name"),
    [
        ("mse", "mse"),
        (own_loss, "own_loss"),
        (keras.losses.CategoricalHinge(), "CategoricalHinge"),
        (keras.losses.CategoricalFocalCrossentropy(), "CategoricalFocalCrossentropy"),
        (keras.losses.CategoricalCrossentropy(label_smoothing=0.1), "CategoricalCrossentropy"),
        (keras.losses.CategoricalCrossentropy(reduction="sum"), "CategoricalCrossentropy"),
    ],
)
def test_another_loss_is_refused(loss, name):
    model = graph()
    model.compile("sgd", loss)
    with pytest.raises(DistcnnError, match=f"compiled with the loss {name}; expected categorical"):
        require_plain_training("mine:net", model)


@pytest.mark.parametrize(
    "loss",
    [
        None,
        "categorical_crossentropy",
        "sparse_categorical_crossentropy",
        keras.losses.categorical_crossentropy,
        keras.losses.CategoricalCrossentropy(from_logits=True),
        keras.losses.SparseCategoricalCrossentropy(),
    ],
)
def test_the_same_loss_is_trained_and_the_rest_is_said_not_to_be_used(loss, caplog):
    model = graph()
    model.compile("sgd", loss)
    with caplog.at_level(logging.WARNING, "distcnn"):
        require_plain_training("mine:net", model)
    assert "its optimizer and metrics are not used" in caplog.text


def test_plain_models_pass_without_a_word(caplog):
    for model in (
        graph(),
        graph(overriding("summary")),
        keras.Sequential([keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(3)]),
    ):
        require_plain_training("mine:net", model)
    assert not caplog.text


def test_the_factory_is_refused_before_anything_is_trained():
    config = ModelConfig(factory="tests.models.test_customised:compiled")
    with pytest.raises(DistcnnError, match=r"test_customised:compiled returned a model"):
        build_model(config, (4, 4, 1), 3)


def compiled() -> keras.Model:
    model = graph()
    model.compile("adam", "mse")
    return model
