"""How the training loop reaches the callbacks: the user's see the classifier."""

from collections.abc import Callable
from typing import Any

import keras
from keras.callbacks import CallbackList

from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import call_synchronously

WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
"""Keras' callbacks that write or send, and so work for rank 0 alone."""


def callbacks_for_rank(
    callbacks: list[keras.callbacks.Callback], *, is_chief: bool
) -> list[keras.callbacks.Callback]:
    """Returns the user's callbacks that work in this process.

    All of them work in rank 0. In the other ranks those are left out that write: Keras' own by
    type, the user's by their attribute `chief_only = True`.

    Raises:
        UsageError: If one would restore a state of its own over the one that is resumed.
    """
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in callbacks):
        raise UsageError(
            "keras.callbacks.BackupAndRestore would restore its state over the run's own; leave it "
            "out: the same command goes on by itself"
        )
    if is_chief:
        return callbacks
    return [
        callback
        for callback in callbacks
        if not isinstance(callback, WRITERS) and not getattr(callback, "chief_only", False)
    ]


class TrainingCallbacks(CallbackList):
    """Calls callbacks without a host synchronisation a step.

    Callbacks that do not override `on_train_batch_end`, or that declare `reads_logs = False`, never
    force the step's metrics to the host.

    Args:
        callbacks: The callbacks.
        model: The classifier that they see as `self.model`.
        metrics: Brings the metrics of the epoch so far to the host.
        **params: What callbacks see as `self.params` (epochs, steps).
    """

    def __init__(
        self,
        callbacks: list[keras.callbacks.Callback],
        *,
        model: keras.Model,
        metrics: Callable[[], dict[str, float]],
        **params: Any,
    ) -> None:
        super().__init__(callbacks, add_history=True, add_progbar=False, model=model, **params)
        self._metrics = metrics
        call_synchronously(self)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports a batch."""
        numbers: dict[str, float] | None = None
        for callback in self.callbacks:
            if not getattr(callback, "reads_logs", True) or _is_silent(callback):
                callback.on_train_batch_end(batch, None)
                continue
            if numbers is None:
                numbers = self._metrics()
            callback.on_train_batch_end(batch, numbers)


def _is_silent(callback: keras.callbacks.Callback) -> bool:
    base = keras.callbacks.Callback
    ends = {"on_train_batch_end": base.on_train_batch_end, "on_batch_end": base.on_batch_end}
    # By instance, since LambdaCallback sets its functions on itself.
    return all(getattr(getattr(callback, k), "__func__", None) is v for k, v in ends.items())
