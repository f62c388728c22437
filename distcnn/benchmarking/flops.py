"""Arithmetic: the peak rate of the hardware, and the operations that training takes."""

import time

import keras
import tensorflow as tf

_SIDE = 2048
_REPEATS = 12


def training_flops(model: keras.Model) -> float:
    """Returns the floating point operations of a training step per image.

    TensorFlow's profiler counts the forward pass of the plain model, a multiply-add as two
    operations. The backward pass counts as two forward passes (Amodei and Hernandez 2018, "AI and
    Compute").
    """
    shape = (1, *model.input_shape[1:])
    forward = tf.function(lambda images: model(images, training=False))
    concrete = forward.get_concrete_function(tf.TensorSpec(shape, tf.float32))
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    profile = tf.compat.v1.profiler.profile(concrete.graph, options=options)
    return 3.0 * profile.total_float_ops


class LargeProduct:
    """A matrix product that is large enough to reach the peak rate of the hardware.

    Args:
        dtype: Type to compute in, such as bfloat16.

    Attributes:
        flops: Floating point operations of the product.
    """

    flops = 2.0 * _SIDE**3

    def __init__(self, dtype: str) -> None:
        self._values = tf.cast(tf.random.stateless_normal([_SIDE, _SIDE], [1, 2]), dtype)
        self._product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)[0]))
        self.seconds()

    def seconds(self) -> float:
        """Computes the product; returns the seconds that it took."""
        start = time.perf_counter()
        self._product(self._values).numpy()
        return time.perf_counter() - start


def peak_flops(dtype: str) -> float:
    """Measures the peak rate of a large matrix product, in operations per second.

    Args:
        dtype: Type to compute in, such as bfloat16.
    """
    product = LargeProduct(dtype)
    return product.flops / min(product.seconds() for _ in range(_REPEATS))
