"""Which callbacks run in a process, and how the training loop calls them."""

import contextlib
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import keras
from keras.callbacks import CallbackList
from typing_extensions import override

from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import call_synchronously

WRITERS = (
    keras.callbacks.CSVLogger,
    keras.callbacks.ModelCheckpoint,
    keras.callbacks.RemoteMonitor,
    keras.callbacks.TensorBoard,
)
"""Keras' callbacks that write or send data, and so run on rank 0 only."""


_SET_THE_RATE = (keras.callbacks.ReduceLROnPlateau, keras.callbacks.LearningRateScheduler)


def callbacks_for_rank(
    callbacks: Sequence[keras.callbacks.Callback], *, is_chief: bool, rate_can_be_set: bool = True
) -> list[tuple[int, keras.callbacks.Callback]]:
    """Returns the user's callbacks that run in this process, with their place among all of them.

    All of them run on rank 0. The other ranks omit callbacks that write: Keras' own by their type,
    the user's by the attribute `chief_only = True`.

    Raises:
        UsageError: If a callback would overwrite the resumed state with its own, or sets a learning
            rate that follows a schedule.
    """
    if any(isinstance(callback, keras.callbacks.BackupAndRestore) for callback in callbacks):
        raise UsageError(
            "keras.callbacks.BackupAndRestore would overwrite the run's own state; remove it: the "
            "same command resumes the run anyway"
        )
    for callback in callbacks:
        if isinstance(callback, _SET_THE_RATE) and not rate_can_be_set:
            raise UsageError(
                f"keras.callbacks.{type(callback).__name__} sets the learning rate, but "
                "optimizer.schedule or optimizer.warmup_epochs already does; leave one of them out"
            )
    return [
        (index, callback)
        for index, callback in enumerate(callbacks)
        if is_chief or not (isinstance(callback, WRITERS) or getattr(callback, "chief_only", False))
    ]


class TrainingCallbacks(CallbackList):
    """Calls callbacks without synchronising host and device at every step.

    The step's metrics are added up and copied to the host only for callbacks that override
    `on_train_batch_end` and do not declare `reads_logs = False`, of whatever process.

    Args:
        callbacks: The callbacks.
        users: Those among them that are the user's.
        model: The classifier, which callbacks see as `self.model`.
        metrics: Copies the metrics of the epoch so far to the host; called in all processes.
        any_process: Returns whether a condition holds in any process.
        weights_for_users: Returns a context in which the model has the weights that are evaluated
            and saved; the user's `on_epoch_end` runs in it.
        **params: What callbacks see as `self.params` (epochs, steps).
    """

    def __init__(
        self,
        callbacks: list[keras.callbacks.Callback],
        users: Sequence[keras.callbacks.Callback],
        *,
        model: keras.Model,
        metrics: Callable[[], dict[str, Any]],
        any_process: Callable[[bool], bool],
        weights_for_users: Callable[[], contextlib.AbstractContextManager[None]],
        **params: Any,
    ) -> None:
        super().__init__(
            callbacks, add_history=True, add_progbar=False, model=model, verbose=0, **params
        )
        self._metrics = metrics
        self._users = {id(callback) for callback in users}
        self._weights_for_users = weights_for_users
        self._metrics_are_read = any_process(any(map(_reads_logs, callbacks)))
        call_synchronously(self)

    @override
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        metrics = self._metrics() if self._metrics_are_read else None
        for callback in self.callbacks:
            callback.on_train_batch_end(batch, metrics if _reads_logs(callback) else None)

    @override
    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        groups = itertools.groupby(self.callbacks, key=lambda each: id(each) in self._users)
        for are_users, group in groups:
            with self._weights_for_users() if are_users else contextlib.nullcontext():
                for callback in group:
                    callback.on_epoch_end(epoch, logs)


def _reads_logs(callback: keras.callbacks.Callback) -> bool:
    return getattr(callback, "reads_logs", True) and not _ignores_batch_end(callback)


def _ignores_batch_end(callback: keras.callbacks.Callback) -> bool:
    base = keras.callbacks.Callback
    hooks = {"on_train_batch_end": base.on_train_batch_end, "on_batch_end": base.on_batch_end}
    # Checked on the instance, since LambdaCallback sets its functions there.
    return all(getattr(getattr(callback, k), "__func__", None) is v for k, v in hooks.items())
