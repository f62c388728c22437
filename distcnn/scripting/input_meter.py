"""Measures what a script's training reads, and how long it waits for it."""

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.engine.shard import WorkerRows, batch_rows
from distcnn.errors import DataError
from distcnn.runtime.graph_clock import graph_time
from distcnn.runtime.keras_hooks import MAKE_FUNCTION, NEXT_BATCH, NEXT_BATCH_OR_NONE, Hooks


class InputMeter:
    """Counts the batches that training reads, their rows, and the seconds that it waits for them.

    It counts inside the training function, where the function takes its next batch, so reading the
    counts does not wait for the device. Every rank counts, so that all have the same functions.
    """

    def __init__(self) -> None:
        with tf.device("CPU:0"):
            self._totals = tf.Variable(tf.zeros(3, tf.float64), trainable=False)
        self._in_training = False

    def install(self, hooks: Hooks) -> None:
        """Makes the training functions count that Keras makes from now on."""
        hooks.replace(MAKE_FUNCTION, self._marking)
        hooks.replace(NEXT_BATCH, self._timing)
        hooks.replace(NEXT_BATCH_OR_NONE, self._counting)

    def totals(self) -> np.ndarray:
        """Returns batches, rows, and seconds of waiting so far: float64 of shape (3,).

        An execution of several steps adds no waiting, as it reads its next batch while it computes.
        """
        found: np.ndarray = self._totals.numpy()
        return found

    def _marking(self, original: Any) -> Any:
        """Notices when a training function runs, and so when it is traced."""

        def make_function(model: keras.Model, step: Callable[[Any], Any]) -> Any:
            function = original(model, step)
            if getattr(step, "__name__", "") != "train_step":
                return function

            def train(batches: Any) -> Any:
                self._in_training = True
                try:
                    return function(batches)
                finally:
                    self._in_training = False

            return train

        return make_function

    def _timing(self, original: Any) -> Any:
        def get_next(iterator: Any) -> Any:
            if not self._in_training:
                return original(iterator)
            with tf.device("CPU:0"):
                requested = graph_time()
                batch = original(iterator)
                with tf.control_dependencies(tf.nest.flatten(batch, expand_composites=True)[:1]):
                    arrived = graph_time()
                counts = tf.stack([1.0, _rows(batch), arrived - requested])
                self._totals.assign_add(counts, read_value=False)
            return batch

        return get_next

    def _counting(self, original: Any) -> Any:
        def get_next_as_optional(iterator: Any) -> Any:
            batch = original(iterator)
            if self._in_training:
                with tf.device("CPU:0"):
                    counts = tf.cond(
                        batch.has_value(),
                        lambda: tf.stack([1.0, _rows(batch.get_value()), 0.0]),
                        lambda: tf.zeros(3, tf.float64),
                    )
                    self._totals.assign_add(counts, read_value=False)
            return batch

        return get_next_as_optional


def _rows(batch: Any) -> tf.Tensor:
    """Returns the number of rows of a batch, 0 if nothing in it has rows: a float64 scalar."""
    if isinstance(batch, WorkerRows):
        return tf.cast(batch_rows(batch), tf.float64)
    parts = [p for p in keras.tree.flatten(batch) if not isinstance(p, tf.experimental.Optional)]
    try:
        return tf.cast(batch_rows(parts), tf.float64)
    except DataError:  # which a train_step of the script's own may take
        return tf.zeros([], tf.float64)
