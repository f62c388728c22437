"""Keeps the replicas the same while a script fits a model."""

from collections.abc import Callable
from typing import Any

import keras
from typing_extensions import override


class Watcher(keras.callbacks.Callback):
    """Acts before any callback of the user sees the model.

    Args:
        synchronise: Averages over the replicas what each of them updates by itself.
        check: Checks, at a step, that all replicas hold the same state.
    """

    def __init__(
        self,
        synchronise: Callable[[keras.Model], None],
        check: Callable[[keras.Model, int], None],
    ) -> None:
        super().__init__()
        self._synchronise = synchronise
        self._check = check
        self._is_first = True

    @override
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._is_first:
            self._check(self.model, batch + 1)
            self._is_first = False

    @override
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self._synchronise(self.model)
        self._check(self.model, int(self._iterations()))

    def _iterations(self) -> Any:
        optimizer = self.model.optimizer
        return 0 if optimizer is None else keras.ops.convert_to_numpy(optimizer.iterations)
