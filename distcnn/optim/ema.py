"""Exponential moving average (EMA) of a model's weights."""

import contextlib
from collections.abc import Iterator

import keras
import numpy as np
import tensorflow as tf

AVERAGED_TYPES = ("float32", "float64")
"""Types of the weights of which averages are taken: over steps, or over replicas."""


class WeightEMA:
    """Maintains a moving average of a model's weights, and swaps it in for evaluation.

    The first updates use a decay of `(1 + n) / (10 + n)` where that is smaller, so that the average
    forgets the initial weights.

    Args:
        model: Built model.
        decay: Decay per step, in (0, 1).

    Attributes:
        averaged: The weights of which averages are taken.
        averages: Their averages.
    """

    def __init__(self, model: keras.Model, decay: float) -> None:
        self.averaged = [w for w in model.weights if w.dtype in AVERAGED_TYPES]
        self._decay = decay
        self._updates = keras.Variable(0, dtype="int64", trainable=False, name="average_updates")
        self.averages = [
            keras.Variable(np.array(w), dtype=w.dtype, trainable=False, name="average")
            for w in self.averaged
        ]

    @property
    def variables(self) -> list[keras.Variable]:
        """The state to save: the number of updates and the averages."""
        return [self._updates, *self.averages]

    @property
    def statistics(self) -> list[keras.Variable]:
        """The averages of non-trainable weights, such as moving statistics."""
        pairs = zip(self.averages, self.averaged, strict=True)
        return [mean for mean, weight in pairs if not weight.trainable]

    def update(self) -> None:
        """Moves the averages towards the current weights, on each replica; works in a graph."""
        count = tf.cast(self._updates.value, tf.float32)
        rate = 1 - tf.minimum(self._decay, (1 + count) / (10 + count))
        for mean, weight in zip(self.averages, self.averaged, strict=True):
            mean.assign_add(tf.cast(rate, mean.dtype) * (weight.value - mean.value))
        self._updates.assign_add(1)

    @contextlib.contextmanager
    def swapped_in(self) -> Iterator[None]:
        """Puts the averages into the model for the duration of the context."""
        trained = [weight.numpy() for weight in self.averaged]
        self.copy_to_model()
        try:
            yield
        finally:
            for weight, value in zip(self.averaged, trained, strict=True):
                weight.assign(value)

    @contextlib.contextmanager
    def lent(self) -> Iterator[None]:
        """Puts the averages into the model for code that may change the weights.

        If it does, the model keeps what it set, and the averages start again from there.
        """
        trained = [weight.numpy() for weight in self.averaged]
        self.copy_to_model()
        before = [weight.numpy() for weight in self.averaged]
        yield
        pairs = zip(self.averaged, before, strict=True)
        if all(np.array_equal(weight.numpy(), value, equal_nan=True) for weight, value in pairs):
            for weight, value in zip(self.averaged, trained, strict=True):
                weight.assign(value)
        else:
            self.restart()

    def restart(self) -> None:
        """Sets the averages to the current weights."""
        for mean, weight in zip(self.averages, self.averaged, strict=True):
            mean.assign(weight.value)

    def copy_to_model(self) -> None:
        """Puts the averages into the model for good."""
        for mean, weight in zip(self.averages, self.averaged, strict=True):
            weight.assign(mean)
