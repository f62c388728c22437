"""Saves the state of the run, and stops it when it is time."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np

from distcnn.runtime.signals import StopRequest
from distcnn.storage.checkpoint import Checkpoints, Progress, snapshot
from distcnn.storage.run_directory import RunDirectory
from distcnn.training.callbacks.non_finite import require_finite_loss
from distcnn.training.setup import TrainingSetup


class StoppedBySignal(BaseException):
    """A signal stopped the run after its state was saved."""


class CheckpointSaver(keras.callbacks.Callback):
    """Saves a checkpoint at the end of epochs and when a signal asks to stop.

    It stands after the user's callbacks, so that what they did in an epoch is in its checkpoint. It
    works in every process, so that all stop at the same step; only the chief writes.

    Args:
        setup: The run.
        directory: The run directory.
        checkpoints: Its checkpoints.
        progress: How far the run already is.
        measured: Returns the seconds and images that this process has measured so far.
        stop: Whether a signal asked to stop.

    Attributes:
        progress: How far the run is in the last checkpoint.
    """

    reads_logs = False

    def __init__(
        self,
        setup: TrainingSetup,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        progress: Progress,
        measured: Callable[[], tuple[float, int]],
        stop: StopRequest,
    ) -> None:
        super().__init__()
        self._setup = setup
        self._training = setup.training
        self._backend = setup.backend
        self._directory = directory
        self._checkpoints = checkpoints
        self._before = progress
        self._measured = measured
        self._every_epochs = setup.config.checkpoint.every_epochs
        self._patience = setup.config.train.early_stopping
        self._stop = stop
        self.progress = progress

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves and stops when a signal asked for it, except at the end of an epoch."""
        if not self._training.step_in_epoch:
            return
        alone = self._backend.size == 1
        if self._stop.name is not None if alone else self._training.voted_to_stop():
            self._setup.state.synchronise()
            self._save()
            raise StoppedBySignal

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the epoch if it is due, the best, the last, or asked for by a signal."""
        known = self.progress
        self.progress = known.after_epoch(epoch, self._training.step, (logs or {}).get("val_loss"))
        is_best = self.progress is not known
        if self.progress.out_of_patience(self._patience, epoch + 1):
            self.model.stop_training = True
        own = np.array([self._stop.name is not None, self.model.stop_training], np.float64)
        stop, self.model.stop_training = (bool(votes) for votes in self._backend.sum(own))
        last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if is_best or last or stop or (epoch + 1) % self._every_epochs == 0:
            self._save()
        if stop and not last:
            raise StoppedBySignal

    def _save(self) -> None:
        require_finite_loss(self._training)
        seconds, images = self._measured()
        self.progress = dataclasses.replace(
            self.progress,
            step=self._training.step,
            train_seconds=self._before.train_seconds + seconds,
            images=self._before.images + images,
        )
        self._backend.run_on_chief(self._write)

    def _write(self) -> None:
        self._directory.require_present()
        self._checkpoints.save(snapshot(self._setup.state.variables), self.progress)
