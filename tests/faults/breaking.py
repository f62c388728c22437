"""A user's callbacks that fail, each in its own way; `FAILS_AT` of them is the step."""

import os
import resource
import signal
from typing import Any

import keras
import tensorflow as tf

from distcnn.runtime.cluster import find_cluster

_FAILS_AT = 12
_BLOCK_BYTES = 1 << 28


class _Breaking(keras.callbacks.Callback):
    """Fails in the second rank."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == _FAILS_AT and find_cluster(os.environ).rank == 1:
            self.fail()

    def fail(self) -> None:
        """Fails."""
        raise RuntimeError(f"{object()} has no cats")


class Raises(_Breaking):
    """A bug that shows in one rank; its text is another one every time."""


class Crashes(_Breaking):
    """A segmentation fault."""

    def fail(self) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)


class FailsInTensorFlow(_Breaking):
    """An operation that TensorFlow refuses."""

    def fail(self) -> None:
        tf.ensure_shape(tf.zeros((2,)), (3,))


class Exhausts(_Breaking):
    """Takes more memory than there is."""

    def fail(self) -> None:
        with open("/proc/self/statm") as file:  # noqa: PTH123
            taken = int(file.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + _BLOCK_BYTES, taken + _BLOCK_BYTES))
        bytearray(2 * _BLOCK_BYTES)


class RaisesEverywhere(keras.callbacks.Callback):
    """A bug that shows in every rank."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == _FAILS_AT:
            raise KeyError("cats")
