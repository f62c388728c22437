"""Probabilities and logits are told apart by what comes out."""

import logging
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from distcnn.errors import DistcnnError
from distcnn.models.outputs import last_activation, resolve_output

IMAGES = np.random.default_rng(0).random((6, 6, 6, 3), np.float32)
ADVICE = "--model.output"


def ending(*last: layers.Layer, classes: int = 3, activation: Any = "softmax") -> keras.Model:
    """A model whose dense layer is followed by other layers."""
    first = [keras.Input((6, 6, 3)), layers.Flatten()]
    return keras.Sequential([*first, layers.Dense(classes, activation=activation), *last])


def twice() -> keras.Model:
    """The average of two softmaxes."""
    images = keras.Input((6, 6, 3))
    flat = layers.Flatten()(images)
    heads = [layers.Dense(3, activation="softmax")(flat) for _ in range(2)]
    return keras.Model(images, layers.Average()(heads))


def by_operation() -> keras.Model:
    images = keras.Input((6, 6, 3))
    return keras.Model(images, keras.ops.softmax(layers.Dense(3)(layers.Flatten()(images))))


def nested() -> keras.Model:
    images = keras.Input((6, 6, 3))
    return keras.Model(images, layers.Reshape((3,))(ending()(images)))


PROBABILITIES = {
    "softmax": lambda: ending(),
    "reshape": lambda: ending(layers.Reshape((3,))),
    "flatten": lambda: ending(layers.Flatten()),
    "permute": lambda: ending(layers.Permute((1,))),
    "identity": lambda: ending(layers.Identity()),
    "dropout": lambda: ending(layers.Dropout(0.5)),
    "linear": lambda: ending(layers.Activation("linear")),
    "softmax layer": lambda: ending(layers.Softmax(), activation=None),
    "lambda": lambda: ending(layers.Lambda(keras.ops.softmax), activation=None),
    "zero head": lambda: zeroed(ending(layers.Reshape((3,)))),
    "average": twice,
    "operation": by_operation,
    "nested": nested,
}


def zeroed(model: keras.Model) -> keras.Model:
    model.set_weights([0 * weight for weight in model.get_weights()])
    return model


@pytest.mark.parametrize("name", PROBABILITIES)
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_rows_that_sum_to_one_are_probabilities_whatever_is_made_last(name, policy, caplog):
    keras.config.set_dtype_policy(policy)
    try:
        model = PROBABILITIES[name]()
    finally:
        keras.config.set_dtype_policy("float32")
    output = resolve_output(model, IMAGES)
    assert (output.logits, output.reason) == (False, "rows sum to 1")
    assert not caplog.text


class Gated(keras.Model):
    """Returns logits, but makes a softmax gate last."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = layers.Flatten()
        self.head = layers.Dense(3)
        self.gate = layers.Dense(3, activation="softmax")

    def call(self, images: Any) -> Any:
        flat = self.flat(images)
        return self.head(flat) * self.gate(flat)


def gated() -> keras.Model:
    images = keras.Input((6, 6, 3))
    return keras.Model(images, Gated()(images))


LOGITS = {
    "dense": lambda: ending(activation=None),
    "two classes": lambda: ending(activation=None, classes=2),
    "zero head": lambda: zeroed(ending(activation=None)),
    "zero head that is reshaped": lambda: zeroed(ending(layers.Reshape((3,)), activation=None)),
    "log softmax": lambda: ending(activation="log_softmax"),
    "relu": lambda: ending(activation="relu", classes=8),
    "gate": gated,
}


@pytest.mark.parametrize("name", LOGITS)
def test_all_else_are_logits(name, caplog):
    for seed in range(3):
        keras.utils.set_random_seed(seed)
        assert resolve_output(LOGITS[name](), IMAGES).logits
    assert not caplog.text


def test_equal_logits_that_sum_to_one_by_their_biases_stay_logits(caplog):
    model = zeroed(ending(activation=None))
    model.layers[-1].bias.assign([1 / 3] * 3)
    assert resolve_output(model, IMAGES).logits
    assert "dense layer without activation" in caplog.text


@pytest.mark.parametrize("last", [(), (layers.Reshape((3,)),)])
def test_a_sigmoid_head_is_refused(last):
    model = ending(*last, activation="sigmoid")
    with pytest.raises(DistcnnError, match=r"ends with sigmoid.*do not sum to 1.*--model\.output"):
        resolve_output(model, IMAGES)


def test_softmax_over_the_wrong_axis_is_refused():
    with pytest.raises(DistcnnError, match=r"ends with softmax.*do not sum to 1"):
        resolve_output(ending(layers.Softmax(axis=0), activation=None), IMAGES)


def test_a_bounded_output_of_unknown_kind_is_warned_of(caplog):
    model = ending(layers.Lambda(keras.ops.sigmoid), activation=None)
    assert resolve_output(model, IMAGES).logits
    assert "all in [0, 1]" in caplog.text
    assert ADVICE in caplog.text


@pytest.mark.parametrize(
    ("declared", "activation", "warned"),
    [
        ("logits", None, False),
        ("probabilities", "softmax", False),
        ("logits", "softmax", True),
        ("probabilities", None, True),
        ("probabilities", "sigmoid", True),
        ("logits", "sigmoid", False),
    ],
)
def test_what_the_user_says_wins_and_a_contradiction_is_warned_of(
    declared, activation, warned, caplog
):
    with caplog.at_level(logging.WARNING, "distcnn"):
        output = resolve_output(ending(activation=activation), IMAGES, declared)
    assert (output.logits, output.reason) == (declared == "logits", "as configured")
    assert (f"model.output is {declared}" in caplog.text) is warned


def test_outputs_that_are_not_finite_are_judged_by_the_last_activation(caplog):
    images = np.full_like(IMAGES, np.nan)
    assert not resolve_output(ending(), images).logits
    assert resolve_output(ending(activation=None), images).logits
    assert caplog.text.count("not finite before training") == 2


def test_the_last_activation_is_found_behind_layers_that_keep_values():
    assert last_activation(nested()) == "softmax"
    assert last_activation(by_operation()) == "softmax"
    assert last_activation(ending(activation=None)) == "linear"
    assert last_activation(ending(activation="relu")) is None
    assert last_activation(gated()) is None
