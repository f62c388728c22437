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


def peak_flops(dtype: str) -> float:
    """Measures the peak rate of a large matrix product, in operations per second.

    Args:
        dtype: Type to compute in, such as bfloat16.
    """
    side = _SIDE
    values = tf.cast(tf.random.stateless_normal([side, side], [1, 2]), dtype)
    product = tf.function(lambda a: tf.reduce_sum(tf.matmul(a, a)[0]))
    product(values).numpy()
    best = float("inf")
    for _ in range(_REPEATS):
        start = time.perf_counter()
        product(values).numpy()
        best = min(best, time.perf_counter() - start)
    return 2.0 * side**3 / best
