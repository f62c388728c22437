"""The trainer: turns a configuration into a finished run directory."""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras
import numpy as np

from distcnn.config import Config
from distcnn.config.lookup import import_object
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.context import join_run
from distcnn.errors import UsageError
from distcnn.launching.command import FOLDER
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.keras_internals import follows_schedule
from distcnn.runtime.rank_page import own_page
from distcnn.runtime.signals import StopRequest, stop_request
from distcnn.storage.checkpoint import CALLBACKS, Checkpoints, Progress
from distcnn.storage.environment import describe_environment
from distcnn.storage.mirror import Mirror
from distcnn.storage.run_directory import RunDirectory
from distcnn.storage.summary import log_resolved
from distcnn.training.build import build_setup
from distcnn.training.callbacks.callback_list import TrainingCallbacks, callbacks_for_rank
from distcnn.training.callbacks.checkpointing import CheckpointSaver, StoppedBySignal
from distcnn.training.callbacks.metrics import MetricsRecorder, MetricsWriter, Row
from distcnn.training.callbacks.non_finite import NonFiniteLossGuard
from distcnn.training.callbacks.progress import ProgressDisplay
from distcnn.training.callbacks.saved_state import load_callbacks
from distcnn.training.callbacks.tensorboard import (
    TensorBoardRestarts,
    TensorBoardScalars,
    tensorboard_callbacks,
)
from distcnn.training.finish import RunFinish, TrainedRun
from distcnn.training.loop import run_epochs
from distcnn.training.resuming import start_from, take_initial_weights
from distcnn.training.saving import BackgroundSaving
from distcnn.training.setup import TrainingSetup
from distcnn.training.state_copies import StateCopies

if TYPE_CHECKING:
    from distcnn.training.tracking.trackers import Trackers

log = logging.getLogger("distcnn")


class Trainer:
    """Trains one classifier from a configuration.

    The constructor checks everything and writes nothing; `fit` creates the run directory. In a run
    of several processes, each creates a Trainer and calls `fit`; only rank 0 prints and writes.

    Args:
        config: The configuration of the run.
        callbacks: The user's own Keras callbacks, which see the classifier as `self.model`. They
            run in every process, except those that write files; see `callbacks_for_rank`.
        cluster: The processes of the run; read from the environment by default.

    Attributes:
        config: The configuration of the run.
        setup: Everything the run is built from: data, model, optimizer, steps.
        directory: The run directory.

    Raises:
        DistcnnError: If the data, the model, the devices or the run directory cannot be used.

    Example:
        >>> Trainer(load_config("quickstart", train={"epochs": 3})).fit()
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        cluster: Cluster | None = None,
    ) -> None:
        if config.data.factory is not None:
            raise UsageError(
                f"data.factory is {config.data.factory}, but Trainer trains on images of a data "
                "set; use the command distcnn train, or distcnn.session and the model's own fit"
            )
        self.config = config
        context = join_run(config, cluster)
        own_page().joined()
        backend = context.backend
        with reporting_lost_peers(backend):
            self.directory = _choose_directory(config, backend)
            self.setup: TrainingSetup = build_setup(config, context)
            self._has_initial_weights = False
            if not self.directory.begun:  # a wrong file is found before anything is written
                backend.run_on_chief(self._take_initial_weights)
            with backend.scope():
                paths = config.train.callbacks
                configured = [import_object(path, "train.callbacks")() for path in paths]
        self._mirror: Mirror | None = None
        self._user_callbacks = callbacks_for_rank(
            [*callbacks, *configured],
            is_chief=backend.is_chief,
            rate_can_be_set=not follows_schedule(self.setup.optimizer),
        )

    @property
    def model(self) -> keras.Model:
        """The classifier."""
        return self.setup.model

    def fit(self) -> dict[str, Any] | None:
        """Trains, evaluates once on the test images, and writes the run directory.

        Returns:
            The content of `summary.json`, or None if a signal stopped the run after saving it.

        Raises:
            DistcnnError: If the run cannot continue; what was saved before is kept.
        """
        checkpoint = self.config.checkpoint
        stop = stop_request(checkpoint.signal, checkpoint.notice, self.setup.context.cluster)
        with self._open_directory(), stop.listening():
            log_resolved(self.directory.path, self.setup.resolved())
            with self._trackers() as trackers:
                try:
                    trained = self._train(stop, trackers)
                except StoppedBySignal:
                    self._finish_stopped(stop)
                    return None
                finish = RunFinish(self.setup, self.directory, self._checkpoints())
                summary = finish.finish(trained)
                if self._mirror is not None:
                    self._mirror.push(self.directory.run_id, trained.progress.step, is_last=True)
                if trackers is not None:
                    trackers.finish(summary, self.setup)
                return summary

    @contextlib.contextmanager
    def _open_directory(self) -> Iterator[None]:
        """Creates the run directory, and keeps it locked during the context."""
        hardware = self.setup.context.hardware
        environment = describe_environment(hardware.gpu, self.setup.resolved())
        backend, address = self.setup.backend, self.config.checkpoint.mirror
        with reporting_lost_peers(backend):
            backend.run_on_chief(lambda: self.directory.create(self.config, environment))
            if address is not None and backend.is_chief:
                self._mirror = Mirror(address, self.directory.path)
            try:
                yield
            finally:
                self.directory.close()

    def _trackers(self) -> contextlib.AbstractContextManager["Trackers | None"]:
        """Returns the trackers that the chief writes to; None for the others, and without any."""
        if not (self.config.logging.trackers and self.setup.backend.is_chief):
            return contextlib.nullcontext()
        from distcnn.training.tracking.trackers import Trackers  # imported only if asked for

        return Trackers(self.config, self.directory.path)

    def _train(self, stop: StopRequest, trackers: "Trackers | None") -> TrainedRun:
        """Trains from the newest checkpoint to the end."""
        setup, backend, users = self.setup, self.setup.backend, self._user_callbacks
        with contextlib.ExitStack() as stack:
            copies = stack.enter_context(self._state_copies())
            progress, saved_callbacks, mark = self._resume(copies)
            rows: list[Row] = backend.run_on_chief(
                lambda: self.directory.cut_metrics(progress.step, mark)
            )
            is_finished = self._is_finished(progress)
            display = stack.enter_context(self._progress_display(progress.step, is_finished))
            sinks: list[Callable[[Row], None]] = [rows.append, display]
            if backend.is_chief and not is_finished:
                file = self.directory.path / "metrics.jsonl"
                sinks.insert(0, stack.enter_context(MetricsWriter(file)))
            recorder = MetricsRecorder(setup, sinks, _reporting(display.advance, setup))
            saving = BackgroundSaving(backend)
            saver = CheckpointSaver(
                setup,
                self.directory,
                self._checkpoints(),
                saving,
                progress,
                users,
                recorder.measured,
                stop,
                copies,
                self._mirror,
            )
            own = [NonFiniteLossGuard(setup.training, self.config.logging.every_steps), recorder]
            if not is_finished:
                own += self._tensorboard(sinks, progress.step, saving)
                if trackers is not None:
                    sinks.append(trackers.log)
            callbacks = self._callback_list(own, saver)
            self._begin_callbacks(callbacks, saved_callbacks)
            logs: dict[str, float] = {}
            if not is_finished:
                batches = backend.iterate(setup.training_batches(progress.step))
                with saving.active():
                    logs = run_epochs(
                        setup, batches, callbacks, asked_to_stop=lambda: stop.name is not None
                    )
                saving.report()
        return TrainedRun(saver.progress, rows, callbacks, logs)

    def _callback_list(
        self, own: list[keras.callbacks.Callback], saver: CheckpointSaver
    ) -> TrainingCallbacks:
        setup, users = self.setup, [callback for _, callback in self._user_callbacks]
        return TrainingCallbacks(
            [*own, *users, saver],
            users,
            model=setup.model,
            metrics=setup.training.metrics,
            any_process=setup.backend.any_process,
            weights_for_users=setup.training.weights_for_callbacks,
            epochs=self.config.train.epochs,
            steps=setup.sampler.steps_per_epoch,
        )

    def _begin_callbacks(
        self, callbacks: TrainingCallbacks, saved: dict[str, np.ndarray] | None
    ) -> None:
        """Starts the callbacks; if the run is resumed, with the state that they had.

        Args:
            callbacks: The callbacks.
            saved: On the chief, their state in the checkpoint; None if the run begins.
        """
        for _, callback in self._user_callbacks:
            if isinstance(callback, keras.callbacks.CSVLogger) and saved is not None:
                callback.append = True
        self.setup.model.stop_training = False
        callbacks.on_train_begin()
        if saved is not None:
            load_callbacks(self._user_callbacks, saved, self.setup.backend)

    @contextlib.contextmanager
    def _state_copies(self) -> Iterator[StateCopies | None]:
        """Opens the copies in memory, which only the loss of a process leaves there."""
        if not self.config.checkpoint.memory_every_steps:
            yield None
            return
        users = self._user_callbacks
        copies = StateCopies(self.setup, self.directory, self._checkpoints(), users)
        try:
            yield copies
        except StoppedBySignal:
            copies.close(remove=True)
            raise
        except BaseException:
            copies.close(remove=False)
            raise
        copies.close(remove=True)

    def _resume(
        self, copies: StateCopies | None
    ) -> tuple[Progress, dict[str, np.ndarray] | None, dict[str, Any] | None]:
        """Restores the newest state on one rank, and copies it to every replica.

        Args:
            copies: Copies of the state in memory, if there may be any.

        Returns:
            The progress; on the chief the saved state of the user's callbacks, or None if this run
            has saved nothing yet; and which metrics belong to a state from memory, or None.
        """
        copy = copies.find() if copies is not None else None
        if copy is not None:
            self._take_state(copy.progress, copy.source)
            return copy.progress, copy.callbacks, copy.mark
        setup, backend = self.setup, self.setup.backend
        arrays: dict[str, np.ndarray] = {}

        def load() -> dict[str, Any] | None:
            checkpoint = self._checkpoints().load_newest() if self.directory.begun else None
            if checkpoint is None:
                return None
            arrays.update(checkpoint[0])
            return dataclasses.asdict(checkpoint[1])

        def restore() -> None:
            setup.state.restore(arrays, str(self.directory.path))
            log.info("resumed         %s at step %d", self.directory.path, progress.step)

        found = backend.run_on_chief(load)
        if found is None:
            begun = backend.run_on_chief(lambda: dataclasses.asdict(self._begin()))
            progress = Progress(**begun)
            self._take_state(progress)
            return progress, None, None
        progress = Progress(**found)
        if setup.phases is not None:
            setup.phases.enter_before(progress.step)
        backend.run_on_chief(restore)
        self._take_state(progress)
        saved = {key: a for key, a in arrays.items() if key.startswith(CALLBACKS)}
        return progress, saved, None

    def _take_state(self, progress: Progress, source: int = 0) -> None:
        setup = self.setup
        setup.state.broadcast(source)
        setup.training.step = progress.step
        own_page().restored(progress.step, progress.step // setup.sampler.steps_per_epoch)

    def _begin(self) -> Progress:
        """Returns where a run without a checkpoint begins; called in the chief alone."""
        self._take_initial_weights()
        other = self.config.checkpoint.other_run
        return Progress() if other is None else start_from(self.setup, other)

    def _take_initial_weights(self) -> None:
        if not self._has_initial_weights:
            take_initial_weights(self.setup)
        self._has_initial_weights = True

    def _is_finished(self, progress: Progress) -> bool:
        epochs_done = progress.step // self.setup.sampler.steps_per_epoch
        train = self.config.train
        return (
            progress.stopped
            or epochs_done >= train.epochs
            or progress.out_of_patience(train.early_stopping, epochs_done)
        )

    def _finish_stopped(self, stop: StopRequest) -> None:
        log.info(
            "stopped by %s after step %d; run the same command again to continue",
            stop.name or "a signal to another rank",
            self.setup.training.step,
        )
        self.setup.backend.close()

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory.path / "checkpoints", self.config.checkpoint.keep)

    def _progress_display(self, first_step: int, is_finished: bool) -> ProgressDisplay:
        is_shown = self.setup.backend.is_chief and not is_finished
        return ProgressDisplay(
            self.config.logging.progress if is_shown else "none",
            self.config.train.epochs,
            self.setup.sampler.steps_per_epoch,
            first_step,
        )

    def _tensorboard(
        self, sinks: list[Callable[[Row], None]], first_step: int, saving: BackgroundSaving
    ) -> list[keras.callbacks.Callback]:
        """Adds TensorBoard's scalars to the sinks; returns callbacks that write everything else."""
        if not (self.config.logging.tensorboard and self.setup.backend.is_chief):
            return []
        folder = self.directory.path / "tensorboard"
        sinks.append(TensorBoardScalars(folder, lambda: saving.stall_seconds))
        if (self.directory.path / FOLDER).is_dir():
            sinks.append(TensorBoardRestarts(self.directory.path))
        return tensorboard_callbacks(folder, self.setup, first_step)


def _reporting(advance: Callable[[int], None], setup: TrainingSetup) -> Callable[[int], None]:
    """Returns a function that also tells a launcher how many steps are done."""
    page, steps_per_epoch = own_page(), setup.sampler.steps_per_epoch

    def advance_and_report(step: int) -> None:
        page.stepped(step, step // steps_per_epoch)
        advance(step)

    return advance_and_report


def _choose_directory(config: Config, backend: Backend) -> RunDirectory:
    """Returns the run directory, which the chief chooses for all processes."""

    def choose() -> tuple[str, bool]:
        directory = RunDirectory.choose(config)
        return str(directory.path), directory.begun

    path, begun = backend.run_on_chief(choose)
    return RunDirectory(Path(path), begun)
