"""Operations that XLA compiles into one pass over memory forward, and one backward.

TensorFlow computes GELU as a dozen operations forward and backward, each of them a pass over memory
in the type of the inputs. XLA makes one loop of them, which computes in float32. On a CPU, XLA's
convolutions and matrix products are slow, so only what lies between them is compiled.
"""

import functools
from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

Operation = Callable[[tf.Tensor], tf.Tensor]


def compiled_activation(activation: Callable[[Any], Any]) -> Operation | None:
    """Returns an activation of Keras that takes fewer passes over memory on a CPU, if there is one.

    Args:
        activation: A function of `keras.activations`.

    Returns:
        A function of a tensor of any float type and shape, with a gradient; None if TensorFlow
        computes the activation in one pass, or there is a GPU.
    """
    if tf.config.list_physical_devices("GPU"):
        return None
    return _COMPILED.get(activation)


def layer_normalise(
    inputs: tf.Tensor, gamma: tf.Tensor, beta: tf.Tensor, epsilon: float
) -> tf.Tensor:
    """Normalises over the last axis (Ba et al. 2016, equation 4).

    Args:
        inputs: Tensor of shape `(..., channels)`; float16, bfloat16 or float32.
        gamma: float32 scale of shape `(channels,)`.
        beta: float32 offset of shape `(channels,)`.
        epsilon: Added to the variance.

    Returns:
        Outputs with the dtype of the inputs.
    """

    @tf.custom_gradient
    def normalised(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor) -> Any:
        def gradient(upstream: tf.Tensor) -> Any:
            return _layer_norm_gradient(x, scale, upstream, epsilon)

        return _layer_norm(x, scale, offset, epsilon), gradient

    return tf.ensure_shape(normalised(inputs, gamma, beta), inputs.shape)


def _standardised(x: tf.Tensor, epsilon: float) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the inputs with mean 0 and variance 1, and what they were multiplied by."""
    centred = x - tf.reduce_mean(x, -1, keepdims=True)
    factor = tf.math.rsqrt(tf.reduce_mean(tf.square(centred), -1, keepdims=True) + epsilon)
    return centred * factor, factor


@tf.function(jit_compile=True, autograph=False)
def _layer_norm(x: tf.Tensor, scale: tf.Tensor, offset: tf.Tensor, epsilon: float) -> tf.Tensor:
    standardised, _ = _standardised(tf.cast(x, tf.float32), epsilon)
    return tf.cast(standardised * scale + offset, x.dtype)


@tf.function(jit_compile=True, autograph=False)
def _layer_norm_gradient(
    x: tf.Tensor, scale: tf.Tensor, upstream: tf.Tensor, epsilon: float
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    standardised, factor = _standardised(tf.cast(x, tf.float32), epsilon)
    outer = tf.cast(upstream, tf.float32)
    inner = outer * scale
    along = tf.reduce_mean(inner * standardised, -1, keepdims=True)
    to_inputs = factor * (inner - tf.reduce_mean(inner, -1, keepdims=True) - standardised * along)
    axes = list(range(x.shape.rank - 1))
    to_scale = tf.reduce_sum(outer * standardised, axes)
    return tf.cast(to_inputs, x.dtype), to_scale, tf.reduce_sum(outer, axes)


def _compiled(activation: Callable[[Any], Any]) -> Operation:
    def in_float32(x: tf.Tensor) -> tf.Tensor:
        return activation(tf.cast(x, tf.float32))

    @tf.function(jit_compile=True, autograph=False)
    def forward(x: tf.Tensor) -> tf.Tensor:
        return tf.cast(in_float32(x), x.dtype)

    @tf.function(jit_compile=True, autograph=False)
    def backward(x: tf.Tensor, upstream: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = in_float32(x)
        return tape.gradient(outputs, x, tf.cast(upstream, tf.float32))

    @tf.custom_gradient
    def compute(x: tf.Tensor) -> Any:
        return forward(x), functools.partial(backward, x)

    return lambda x: tf.ensure_shape(compute(x), x.shape)


_COMPILED: dict[Callable[[Any], Any], Operation] = {
    activation: _compiled(activation)
    for activation in (
        keras.activations.gelu,
        keras.activations.silu,
        keras.activations.hard_silu,
        keras.activations.mish,
    )
}
