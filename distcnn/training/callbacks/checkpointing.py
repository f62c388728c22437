"""Saves the state of the run, and stops it early or on a signal."""

import dataclasses
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from typing_extensions import override

from distcnn.runtime.signals import StopRequest
from distcnn.storage.checkpoint import Checkpoints, Progress, reserve, snapshot
from distcnn.storage.mirror import Mirror
from distcnn.storage.run_directory import RunDirectory
from distcnn.training.callbacks.non_finite import require_finite_loss
from distcnn.training.callbacks.save_intervals import SaveIntervals
from distcnn.training.callbacks.saved_state import Indexed, save_callbacks
from distcnn.training.saving import BackgroundSaving, Write
from distcnn.training.setup import TrainingSetup
from distcnn.training.state_copies import StateCopies


class StoppedBySignal(BaseException):
    """A signal stopped the run after its state was saved."""


class CheckpointSaver(keras.callbacks.Callback):
    """Saves a checkpoint at the end of epochs and at intervals, and when a signal asks to stop.

    It runs after the user's callbacks, so that an epoch's checkpoint includes what they changed. It
    runs in every process, so that all stop at the same step; only the chief writes.

    Args:
        setup: The run.
        directory: The run directory.
        checkpoints: Its checkpoints.
        saving: Writes them while the training goes on.
        progress: The run's progress at the start.
        users: The user's callbacks, whose state is saved too.
        measured: Returns the seconds and images that this process has measured so far.
        stop: Whether a signal has asked to stop.
        copies: Keeps copies in memory between checkpoints; None to keep none.
        mirror: Where checkpoints are copied to; None for nowhere.

    Attributes:
        progress: The run's progress at the last checkpoint.
    """

    reads_logs = False

    def __init__(
        self,
        setup: TrainingSetup,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        saving: BackgroundSaving,
        progress: Progress,
        users: Indexed,
        measured: Callable[[], tuple[float, int]],
        stop: StopRequest,
        copies: StateCopies | None = None,
        mirror: Mirror | None = None,
    ) -> None:
        super().__init__()
        self._setup = setup
        self._training = setup.training
        self._backend = setup.backend
        self._directory = directory
        self._checkpoints = checkpoints
        self._saving = saving
        self._initial_progress = progress
        self._users = users
        self._measured = measured
        self._every_epochs = setup.config.checkpoint.every_epochs
        self._intervals = SaveIntervals(
            setup.backend,
            setup.config.checkpoint.every_steps,
            60 * setup.config.checkpoint.every_minutes,
            setup.training.step,
        )
        self._copies = copies
        self._mirror = mirror
        self._copy_intervals = SaveIntervals(
            setup.backend, setup.config.checkpoint.memory_every_steps, 0, setup.training.step
        )
        self._patience = setup.config.train.early_stopping
        self._stop = stop
        self._buffers: dict[str, np.ndarray] | None = None
        self.progress = progress

    @override
    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        if self._buffers is None and self._backend.is_chief:
            self._buffers, variables = {}, self._setup.state.variables
            self._saving.prepare(lambda: self._reserve(variables))

    def _reserve(self, variables: dict[str, list[Any]]) -> None:
        self._buffers = reserve(variables)

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves if it is due or a signal has asked to stop, except at the end of an epoch."""
        if not self._training.step_in_epoch:
            return
        is_alone = self._backend.size == 1
        stop = self._stop.name is not None if is_alone else self._training.voted_to_stop()
        copy_is_due = self._copy_intervals.is_due(self._training.step)
        if self._intervals.is_due(self._training.step) or stop:
            self._setup.state.synchronise()
            self._save()
        elif copy_is_due and self._copies is not None:
            self._setup.state.synchronise()
            self._copies.copy(self._update_progress())
        if stop:
            self._saving.wait()
            raise StoppedBySignal

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Saves the epoch if it is due, the best or the last one, or a signal has asked to stop."""
        previous = self.progress
        validation_loss = (logs or {}).get("val_loss")
        self.progress = previous.after_epoch(epoch, self._training.step, validation_loss)
        is_best = self.progress is not previous
        if self.progress.out_of_patience(self._patience, epoch + 1):
            self.model.stop_training = True
        votes = np.array([self._stop.name is not None, self.model.stop_training], np.float64)
        stop, self.model.stop_training = (bool(total) for total in self._backend.sum(votes))
        self.progress = dataclasses.replace(self.progress, stopped=self.model.stop_training)
        is_last = self.model.stop_training or epoch + 1 == self.params["epochs"]
        if is_best or is_last or stop or (epoch + 1) % self._every_epochs == 0:
            self._save()
        if is_last:
            self._buffers = {}  # the memory is free when the last checkpoint is written
        if stop and not is_last:
            self._saving.wait()
            raise StoppedBySignal

    def _save(self) -> None:
        self._update_progress()
        self._saving.save(self._copy)
        self._intervals.saved(self._training.step)

    def _update_progress(self) -> Progress:
        require_finite_loss(self._training)
        seconds, images = self._measured()
        self.progress = dataclasses.replace(
            self.progress,
            step=self._training.step,
            steps_per_epoch=self._setup.sampler.steps_per_epoch,
            train_seconds=self._initial_progress.train_seconds + seconds,
            images=self._initial_progress.images + images,
        )
        return self.progress

    def _copy(self) -> Write:
        self._directory.require_present()
        self._buffers = snapshot(self._setup.state.variables, self._buffers)
        arrays = self._buffers | save_callbacks(self._users)
        progress = self.progress
        save = self._checkpoints.prepare(arrays, progress)

        def write() -> None:
            self._directory.require_present()
            save()
            if self._mirror is not None:
                self._mirror.push(self._directory.run_id, progress.step)

        return write
