"""Gathers of equal shapes by TensorFlow's collectives, in one round over the network.

`tf.distribute` takes three: it gathers the shapes first, as they may differ, and gives each gather
a new number, which the other processes ask the first one about.
"""

import tensorflow as tf

_GROUP_KEY = 2**20
"""`tf.distribute` counts the groups that it makes from 1."""

_NUMBERS = 16
"""A process may still be busy with a gather when another begins the next, but not with the one
before."""


class CollectiveGather:
    """Joins a vector of each process; every process calls in the same order.

    Args:
        processes: Number of processes, each of one device.
    """

    def __init__(self, processes: int) -> None:
        self._processes = processes
        with tf.init_scope(), tf.device("CPU:0"):
            self._calls = tf.Variable(0, dtype=tf.int32, trainable=False)

    def __call__(self, bits: tf.Tensor) -> tf.Tensor:
        """Returns the vectors of all processes, joined by rank.

        Args:
            bits: 16-bit integers, of a shape `(length,)` that is the same in every process.
        """
        number = tf.math.floormod(self._calls.assign_add(1), _NUMBERS)
        joined = tf.raw_ops.CollectiveGatherV2(
            input=tf.bitcast(bits, tf.float16),  # it knows no integers of 16 bits
            group_size=self._processes,
            group_key=_GROUP_KEY,
            instance_key=bits.shape[0] * _NUMBERS % 2**31 + number,
            ordering_token=[self._calls.handle],  # one after the other
        )
        return tf.bitcast(tf.ensure_shape(joined, [self._processes * bits.shape[0]]), bits.dtype)
