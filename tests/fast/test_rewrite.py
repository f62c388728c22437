"""The fast form computes the same as the plain model, on the same variables."""

from collections.abc import Callable
from typing import Any

import keras
import pytest
import tensorflow as tf
from keras import layers

from distcnn.fast import fast_model
from distcnn.fast.chain import Chain
from distcnn.models.article import article
from tests.fast.samples import IMAGES, Outcome, branched, difference, known, modern, nested, smooth


@pytest.mark.parametrize("build", [smooth, branched, nested, modern])
def test_outputs_gradients_and_statistics_equal_the_plain_models(
    build: Callable[[], keras.Model],
) -> None:
    model = build()
    fast = fast_model(model)
    assert {id(v) for v in fast.variables} == {id(v) for v in model.variables}
    assert {id(v) for v in fast.trainable_variables} == {id(v) for v in model.trainable_variables}
    found = Outcome(model, fast).distance(Outcome(model, model))
    # A chain of normalisations amplifies rounding.
    assert max(found.values()) < (1e-4 if build is modern else 2e-5), found


@pytest.mark.parametrize("build", [lambda: article((12, 12, 3), 4, dropout=0.0), known])
def test_the_article_and_a_known_network_agree_too(build: Callable[[], keras.Model]) -> None:
    """Except for the few units at the edge of a relu, where rounding decides."""
    model = build()
    plain, fast = Outcome(model, model), Outcome(model, fast_model(model))
    assert difference(fast.outputs, plain.outputs) < 1e-4
    ours, theirs = (tf.concat([tf.reshape(g, [-1]) for g in o.gradients], 0) for o in (fast, plain))
    assert tf.norm(ours - theirs) < 0.05 * tf.norm(theirs)


def test_in_half_precision_it_is_as_near_to_float32_as_the_plain_model() -> None:
    exact_model = smooth()
    exact = Outcome(exact_model, exact_model)
    for policy in ("mixed_bfloat16", "mixed_float16"):
        keras.config.set_dtype_policy(policy)
        model = smooth()
        model.set_weights(exact_model.get_weights())
        plain = Outcome(model, model).distance(exact)
        fast = Outcome(model, fast_model(model)).distance(exact)
        for name, value in fast.items():
            assert value < 1.5 * plain[name] + 2e-3, (policy, name, value, plain[name])


def test_unsupported_layers_are_called_unchanged() -> None:
    class Doubling(layers.Dense):
        def call(self, inputs: Any, training: Any = None) -> Any:
            return 2 * super().call(inputs)

    class Own(keras.Model):
        pass

    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, activity_regularizer="l2")(inputs)
    x = Doubling(4)(layers.Flatten()(x))
    norm = layers.BatchNormalization(renorm=True)
    model = keras.Model(inputs, layers.Softmax()(norm(x)))
    fast = fast_model(model)
    assert not [part for part in fast.parts if isinstance(part, Chain)]
    assert max(Outcome(model, fast).distance(Outcome(model, model)).values()) < 1e-6
    subclass = Own(model.inputs, model.outputs)
    assert fast_model(subclass) is subclass


def test_custom_activations_and_dtypes() -> None:
    """An activation that changes the dtype, and layers entirely in half precision."""
    keras.config.set_dtype_policy("mixed_bfloat16")
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, activation=lambda x: tf.nn.tanh(tf.cast(x, tf.float32)))(inputs)
    x = layers.Dense(4, dtype="bfloat16")(layers.Conv2D(4, 3)(x))
    x = layers.BatchNormalization(dtype="bfloat16")(x)
    x = layers.Dense(4, dtype="float32")(layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, layers.Softmax(dtype="float32")(x))
    fast = fast_model(model)
    assert [len(part.chained) for part in fast.parts if isinstance(part, Chain)] == [2, 1]
    assert difference(fast(IMAGES), model(IMAGES)) < 0.02
    assert Outcome(model, fast).loss < 10


def test_the_users_model_is_not_modified() -> None:
    model = smooth()
    before = model.to_json()
    fast_model(model)(IMAGES, training=True)
    assert model.to_json() == before
    assert model.layers[0].output is not None  # raises for a layer called twice
