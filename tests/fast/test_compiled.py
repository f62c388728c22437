"""Operations that XLA compiles, against their definitions."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.fast import compiled

NAMES = ["gelu", "silu", "hard_silu", "mish"]


def random_tensor(seed: int, dtype: str) -> tf.Tensor:
    return tf.cast(np.random.default_rng(seed).normal(scale=2, size=(5, 3, 4, 6)), dtype)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_activation_and_its_gradient(name: str, dtype: str) -> None:
    """In half precision, they are rounded once: nearer to float64 than what Keras computes."""
    activation = getattr(keras.activations, name)
    inputs, upstream = random_tensor(0, dtype), random_tensor(1, dtype)

    def outcome(function: Any, of: Any = lambda x: x) -> list[np.ndarray]:
        x = of(inputs)
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = function(x)
        gradient = tape.gradient(y, x, output_gradients=of(upstream))
        assert y.dtype == gradient.dtype == x.dtype
        return [tf.cast(value, tf.float64).numpy() for value in (y, gradient)]

    exact = outcome(activation, lambda x: tf.cast(x, tf.float64))
    found = outcome(compiled.compiled_activation(activation))
    rounding = 2**-8 if dtype == "bfloat16" else 1e-6
    for ours, theirs in zip(found, exact, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=max(rounding / 100, 1e-6))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_layer_normalisation_and_its_gradients(dtype: str) -> None:
    inputs, upstream = random_tensor(0, dtype), random_tensor(1, dtype)
    scale, offset = (np.random.default_rng(i).normal(size=6) for i in (2, 3))

    def definition(x: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor) -> tf.Tensor:
        mean, variance = tf.nn.moments(x, [-1], keepdims=True)
        return (x - mean) / tf.sqrt(variance + 0.01) * gamma + beta

    def outcome(function: Any, images: str, weights: str) -> list[np.ndarray]:
        x, outer = (tf.cast(value, images) for value in (inputs, upstream))
        parameters = [tf.cast(value, weights) for value in (scale, offset)]
        with tf.GradientTape() as tape:
            tape.watch([x, *parameters])
            y = function(x, *parameters)
        gradients = tape.gradient(y, [x, *parameters], output_gradients=outer)
        assert [g.dtype for g in gradients] == [images, weights, weights]
        return [tf.cast(value, tf.float64).numpy() for value in (y, *gradients)]

    exact = outcome(definition, "float64", "float64")
    ours_at = functools.partial(compiled.layer_normalise, epsilon=0.01)
    found = outcome(ours_at, dtype, "float32")
    for ours, theirs, rounded in zip(found, exact, (True, True, False, False), strict=True):
        rounding = 2**-8 if dtype == "bfloat16" and rounded else 1e-5
        np.testing.assert_allclose(ours, theirs, rtol=rounding, atol=1e-5)


def test_other_activations_and_gpus_keep_what_tensorflow_computes(monkeypatch: Any) -> None:
    assert compiled.compiled_activation(keras.activations.relu) is None
    assert compiled.compiled_activation(lambda x: keras.activations.gelu(x)) is None
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["GPU:0"])
    assert compiled.compiled_activation(keras.activations.gelu) is None
