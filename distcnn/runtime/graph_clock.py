"""The time, as an operation of a graph."""

import time

import numpy as np
import tensorflow as tf
from tensorflow.python.framework.config import is_op_determinism_enabled


def graph_time() -> tf.Tensor:
    """Returns the seconds since the epoch at which the operation runs, a float64 scalar."""
    if not is_op_determinism_enabled():
        return tf.timestamp()
    # Which TensorFlow refuses then, since its result varies.
    seconds = tf.numpy_function(lambda: np.float64(time.time()), [], tf.float64)
    return tf.ensure_shape(seconds, [])
