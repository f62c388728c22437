"""The trainer: from a configuration to a finished run directory."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import keras

from distcnn.config import Config
from distcnn.config.lookup import import_object
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import is_identical_everywhere
from distcnn.distribute.context import join_run
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.files import write_json
from distcnn.runtime.signals import StopRequest
from distcnn.storage.checkpoint import Checkpoints, Progress, find_checkpoint, read_checkpoint
from distcnn.storage.environment import describe_environment
from distcnn.storage.model_file import ModelMetadata, save_model
from distcnn.storage.run_directory import RunDirectory
from distcnn.storage.summary import log_resolved, log_summary, make_summary
from distcnn.training.build import build_setup
from distcnn.training.callbacks.callback_list import TrainingCallbacks, callbacks_for_rank
from distcnn.training.callbacks.checkpointing import CheckpointSaver, StoppedBySignal
from distcnn.training.callbacks.metrics import MetricsRecorder, MetricsWriter, Row
from distcnn.training.callbacks.non_finite import NonFiniteLossGuard
from distcnn.training.callbacks.progress import ProgressDisplay
from distcnn.training.callbacks.tensorboard import TensorBoardScalars, tensorboard_callbacks
from distcnn.training.loop import run_epochs
from distcnn.training.setup import TrainingSetup

log = logging.getLogger("distcnn")


class Trainer:
    """Trains one classifier as a configuration says.

    Building it checks everything and writes nothing; `fit` makes the run directory. In a run of
    several processes each builds a Trainer and calls `fit`; rank 0 alone prints and writes.

    Args:
        config: The run.
        callbacks: Keras callbacks of the user's own; they see the classifier as `self.model`. They
            work in every process, except for those that write, see `callbacks_for_rank`.
        cluster: The processes of the run; by default as the environment describes them.

    Attributes:
        config: The run.
        setup: What the run is made of: data, model, optimizer, steps.
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
        self.config = config
        context = join_run(config, cluster)
        backend = context.backend
        with reporting_lost_peers(backend):
            self.directory = _choose_directory(config, backend)
            self.setup: TrainingSetup = build_setup(config, context)
            with backend.scope():
                paths = config.train.callbacks
                own = [import_object(path, "train.callbacks")() for path in paths]
        self._user_callbacks = callbacks_for_rank([*callbacks, *own], is_chief=backend.is_chief)

    @property
    def model(self) -> keras.Model:
        """The classifier."""
        return self.setup.model

    def fit(self) -> dict[str, Any] | None:
        """Trains, evaluates on the test images once, and writes the run directory.

        Returns:
            The content of `summary.json`, or None if a signal stopped the run after it was saved.

        Raises:
            DistcnnError: If the run cannot go on; what was saved before stays.
        """
        stop = StopRequest()
        with self._open_directory(), stop.listening():
            log_resolved(self.directory.path, self.setup.resolved())
            try:
                progress, rows = self._train(stop)
            except StoppedBySignal:
                self._leave(stop)
                return None
            saved_epoch = self._select_weights(progress)
            summary = self._summarise(progress, rows, saved_epoch, self._test())
            self._save(summary)
        return summary

    @contextlib.contextmanager
    def _open_directory(self) -> Iterator[None]:
        """Makes the run directory, and holds it while the block runs."""
        hardware = self.setup.context.hardware
        environment = describe_environment(hardware.gpu, self.setup.resolved())
        backend = self.setup.backend
        with reporting_lost_peers(backend):
            backend.run_on_chief(lambda: self.directory.create(self.config, environment))
            try:
                yield
            finally:
                self.directory.close()

    def _train(self, stop: StopRequest) -> tuple[Progress, list[Row]]:
        """Trains from where the run is to its end; returns its progress and all its rows."""
        setup, backend = self.setup, self.setup.backend
        progress = self._resume()
        rows: list[Row] = backend.run_on_chief(lambda: self.directory.cut_metrics(progress.step))
        if self._is_finished(progress):
            return progress, rows
        with contextlib.ExitStack() as stack:
            display = stack.enter_context(self._progress_display(progress.step))
            sinks: list[Callable[[Row], None]] = [rows.append, display]
            if backend.is_chief:
                file = self.directory.path / "metrics.jsonl"
                sinks.insert(0, stack.enter_context(MetricsWriter(file)))
            observers = self._tensorboard(sinks, progress.step)
            recorder = MetricsRecorder(setup, sinks, display.advance)
            guard = NonFiniteLossGuard(setup.training, self.config.logging.every_steps)
            saver = CheckpointSaver(setup, self._checkpoints(), progress, recorder.measured, stop)
            run_epochs(
                setup,
                backend.iterate(setup.training_batches(progress.step)),
                TrainingCallbacks(
                    [guard, recorder, *observers, *self._user_callbacks, saver],
                    model=setup.model,
                    metrics=setup.training.metrics,
                    epochs=self.config.train.epochs,
                    steps=setup.sampler.steps_per_epoch,
                ),
                asked_to_stop=lambda: stop.name is not None,
            )
        return saver.progress, rows

    def _resume(self) -> Progress:
        """Restores the newest state in the chief, and gives it to every replica."""
        setup = self.setup
        found = setup.backend.run_on_chief(lambda: dataclasses.asdict(self._restore()))
        progress = Progress(**found)
        setup.state.broadcast()
        setup.training.step = progress.step
        return progress

    def _restore(self) -> Progress:
        resume = self.config.checkpoint.resume
        if self.directory.begun:
            found, origin = self._checkpoints().load_newest(), str(self.directory.path)
        elif resume in ("auto", "never"):
            return Progress()
        else:
            found, origin = find_checkpoint(Path(resume)), resume
        if found is None:
            return Progress()
        arrays, progress = found
        self.setup.state.restore(arrays, origin)
        log.info("resumed         %s at step %d", origin, progress.step)
        return progress

    def _is_finished(self, progress: Progress) -> bool:
        epochs_done = progress.step // self.setup.sampler.steps_per_epoch
        train = self.config.train
        return epochs_done >= train.epochs or progress.out_of_patience(
            train.early_stopping, epochs_done
        )

    def _leave(self, stop: StopRequest) -> None:
        log.info(
            "stopped by %s after step %d; the same command goes on from there",
            stop.name or "a signal to another rank",
            self.setup.training.step,
        )
        self.setup.backend.close()

    def _select_weights(self, progress: Progress) -> int:
        """Puts the weights to keep into the model: the best epoch's, and of these the average.

        Returns:
            The epoch, counted from 1, that they are from.
        """
        setup = self.setup
        epoch = math.ceil(progress.step / setup.sampler.steps_per_epoch)
        if setup.backend.run_on_chief(self._restore_best):
            setup.state.broadcast()
            epoch = progress.best_epoch + 1
        if setup.ema is not None:
            setup.ema.copy_to_model()
        return epoch

    def _restore_best(self) -> bool:
        """Restores the best epoch's state, if early stopping looks for it and there is one."""
        best = self._checkpoints().best
        if not self.config.train.early_stopping or not best.exists():
            return False
        arrays, _ = read_checkpoint(best)
        self.setup.state.restore(arrays, str(best))
        return True

    def _test(self) -> dict[str, float]:
        test = self.setup.dataset.test
        return self.setup.evaluate(test) if test else {}

    def _summarise(
        self, progress: Progress, rows: list[Row], saved_epoch: int, test: dict[str, float]
    ) -> dict[str, Any]:
        setup = self.setup
        summary = make_summary(
            str(self.config.recipe),
            setup.resolved(),
            progress,
            rows,
            setup.model.weights,
            saved_epoch=saved_epoch,
        )
        summary["weights_agree"] = is_identical_everywhere(setup.backend, setup.model.weights)
        return summary | {f"test_{name}": test.get(name) for name in ("loss", "accuracy")}

    def _save(self, summary: dict[str, Any]) -> None:
        self.setup.compile_for_saving()
        self.setup.backend.run_on_chief(lambda: self._write(summary))
        log_summary(self.directory.path, summary)

    def _write(self, summary: dict[str, Any]) -> None:
        config, setup = self.config, self.setup
        metadata = ModelMetadata(
            setup.dataset.classes,
            setup.interface.pixels,
            setup.objective.logits,
            config.train.test_flip,
        )
        save_model(self.directory.path / "model.keras", setup.model, metadata)
        write_json(self.directory.path / "summary.json", summary)

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory.path / "checkpoints", self.config.checkpoint.keep)

    def _progress_display(self, first_step: int) -> ProgressDisplay:
        return ProgressDisplay(
            self.config.logging.progress if self.setup.backend.is_chief else "none",
            self.config.train.epochs,
            self.setup.sampler.steps_per_epoch,
            first_step,
        )

    def _tensorboard(
        self, sinks: list[Callable[[Row], None]], first_step: int
    ) -> list[keras.callbacks.Callback]:
        """Adds TensorBoard's scalars to the sinks; returns the callbacks that write the rest."""
        if not (self.config.logging.tensorboard and self.setup.backend.is_chief):
            return []
        folder = self.directory.path / "tensorboard"
        sinks.append(TensorBoardScalars(folder))
        return tensorboard_callbacks(folder, self.setup, first_step)


def _choose_directory(config: Config, backend: Backend) -> RunDirectory:
    """Lets the chief choose the run directory, for all processes."""

    def choose() -> tuple[str, bool]:
        chosen = RunDirectory.choose(config)
        return str(chosen.path), chosen.begun

    path, begun = backend.run_on_chief(choose)
    return RunDirectory(Path(path), begun)
