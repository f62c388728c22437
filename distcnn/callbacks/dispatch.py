"""How `fit` reaches the callbacks: the user's see the classifier, and only what really happens."""

from typing import Any

import keras
from keras.callbacks import CallbackList


class Dispatch(CallbackList):
    """Calls callbacks without a host synchronisation a step, and not for steps already done.

    Callbacks that do not override `on_train_batch_end`, or that declare `reads_logs = False`, never
    force the step's metrics to the host.

    Args:
        callbacks: The callbacks.
        model: The classifier that they see as `self.model`.
        first_batch: Batches of the first epoch before this one were done before a resume.
        **params: What callbacks see as `self.params` (epochs, steps).
    """

    def __init__(
        self,
        callbacks: list[keras.callbacks.Callback],
        *,
        model: keras.Model,
        first_batch: int,
        **params: Any,
    ) -> None:
        super().__init__(callbacks, add_history=True, add_progbar=False, model=model, **params)
        self._first_batch = first_batch
        self._async_train = False

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Announces a batch, unless it was done before the resume."""
        if batch >= self._first_batch:
            super().on_train_batch_begin(batch, logs)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports a batch, unless it was done before the resume."""
        if batch < self._first_batch:
            return
        numbers: dict[str, float] | None = None
        for callback in self.callbacks:
            if not getattr(callback, "reads_logs", True) or _is_silent(callback):
                callback.on_train_batch_end(batch, None)
                continue
            if numbers is None:
                numbers = {name: float(value) for name, value in (logs or {}).items()}
            callback.on_train_batch_end(batch, numbers)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Reports an epoch."""
        self._first_batch = 0
        super().on_epoch_end(epoch, logs)


def _is_silent(callback: keras.callbacks.Callback) -> bool:
    base = keras.callbacks.Callback
    overridden = type(callback)
    return (
        overridden.on_train_batch_end is base.on_train_batch_end
        and overridden.on_batch_end is base.on_batch_end
    )
