"""What lets the network work while a step computes."""

import contextlib
import os

import tensorflow as tf

_VARIABLE = "TF_NUM_INTEROP_THREADS"


def spare_a_thread() -> None:
    """Gives TensorFlow one more thread than cores to start operations with.

    A thread runs what it made ready itself, the newest first: with all of them busy computing, the
    start of a reduction, queued long before, comes last. An idle thread takes what is oldest. Has
    no effect if the environment sets the number, or if TensorFlow's devices are in use already.
    """
    if os.environ.get(_VARIABLE):
        return
    threads = tf.config.threading.get_inter_op_parallelism_threads()
    with contextlib.suppress(RuntimeError):
        tf.config.threading.set_inter_op_parallelism_threads(
            1 + (threads or len(os.sched_getaffinity(0)))
        )
