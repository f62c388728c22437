"""The composition root: devices, the parts of a run, then training to its summary."""

import contextlib
import dataclasses
import logging
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from distcnn.config import Config
from distcnn.distribute import reporting_lost_peers
from distcnn.distribute.consistency import is_identical_everywhere
from distcnn.distribute.context import DistributedContext
from distcnn.models import load_object
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.files import write_json
from distcnn.runtime.signals import StopRequest
from distcnn.storage.checkpoint import Checkpoints, Progress, find_checkpoint, read_checkpoint
from distcnn.storage.environment import describe_environment
from distcnn.storage.model_file import ModelMetadata, save_model
from distcnn.storage.run_directory import RunDirectory
from distcnn.storage.summary import log_resolved, log_summary, make_summary
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
        config: What the run is.
        callbacks: Keras callbacks of the user's own; they see the classifier as `self.model`. They
            work in every process, but for those that write, see `callbacks_for_rank`.
        cluster: Where this process stands; by default what the environment says.

    Attributes:
        setup: What the run is made of: data, optimizer, steps.
        model: The classifier.
        directory: The run directory.

    Raises:
        DistcnnError: If the data, the model, the devices or the run directory cannot be used.

    Example:
        >>> Trainer(Config(recipe="digits", data=DataConfig(name="digits"))).fit()
    """

    def __init__(
        self,
        config: Config,
        callbacks: Sequence[keras.callbacks.Callback] = (),
        cluster: Cluster | None = None,
    ) -> None:
        self.config = config
        context = DistributedContext(config, cluster)
        self._backend = context.backend
        with reporting_lost_peers(self._backend):
            path, begun = self._backend.run_on_chief(lambda: _chosen(RunDirectory.choose(config)))
            self.directory = RunDirectory(Path(path), begun)
            self.setup = TrainingSetup(config, context)
            self.model: keras.Model = self.setup.model
            with self._backend.scope():
                own = [load_object(path, "train.callbacks")() for path in config.train.callbacks]
        self._user_callbacks = callbacks_for_rank(
            [*callbacks, *own], is_chief=self._backend.is_chief
        )

    def fit(self) -> dict[str, Any] | None:
        """Trains, evaluates on the test images once, and writes the run directory.

        Returns:
            The content of `summary.json`, or None if a signal stopped the run after it was saved.

        Raises:
            DistcnnError: If the run cannot go on; what was saved before stays.
        """
        stop = StopRequest()
        resolved = self.setup.resolved()
        environment = describe_environment(self.setup.context.hardware, resolved)
        with reporting_lost_peers(self._backend):
            self._backend.run_on_chief(lambda: self.directory.create(self.config, environment))
            try:
                with stop.listening():
                    log_resolved(self.directory.path, resolved)
                    try:
                        progress, rows = self._train(stop)
                    except StoppedBySignal:
                        log.info(
                            "stopped by %s after step %d; the same command goes on from there",
                            stop.name or "a signal to another rank",
                            self.setup.training.step,
                        )
                        self._backend.close()
                        return None
                    return self._finish(resolved, progress, rows)
            finally:
                self.directory.close()

    def _train(self, stop: StopRequest) -> tuple[Progress, list[Row]]:
        config, setup, backend = self.config, self.setup, self._backend
        sampler, training, epochs = setup.sampler, setup.training, config.train.epochs
        checkpoints = self._checkpoints()
        progress = Progress(
            **backend.run_on_chief(lambda: dataclasses.asdict(self._restore(checkpoints)))
        )
        setup.state.broadcast()
        training.step = progress.step
        rows: list[Row] = backend.run_on_chief(lambda: self.directory.cut_metrics(progress.step))
        done_epochs = progress.step // sampler.steps_per_epoch
        patience = config.train.early_stopping
        if done_epochs >= epochs or progress.out_of_patience(patience, done_epochs):
            return progress, rows

        display = ProgressDisplay(
            config.logging.progress if backend.is_chief else "none",
            epochs,
            sampler.steps_per_epoch,
            progress.step,
        )
        sinks: list[Callable[[Row], None]] = [rows.append, display]
        observers = self._tensorboard(sinks, progress.step)
        every = config.logging.every_steps
        recorder = MetricsRecorder(
            training, sampler, every, self._present_rate, sinks, display.advance
        )
        saver = CheckpointSaver(
            training,
            backend,
            setup.state.variables,
            checkpoints,
            progress,
            recorder.measured,
            setup.state.synchronise,
            every_epochs=config.checkpoint.every_epochs,
            patience=patience,
            stop=stop,
        )
        guard = NonFiniteLossGuard(training, every)
        callbacks = [guard, recorder, *observers, *self._user_callbacks, saver]
        with contextlib.ExitStack() as stack:
            if backend.is_chief:
                path = self.directory.path / "metrics.jsonl"
                sinks.insert(0, stack.enter_context(MetricsWriter(path)))
            stack.enter_context(display)
            run_epochs(
                training,
                setup.model,
                backend.iterate(setup.training_batches(progress.step)),
                TrainingCallbacks(
                    callbacks,
                    model=setup.model,
                    metrics=training.metrics,
                    epochs=epochs,
                    steps=sampler.steps_per_epoch,
                ),
                epochs=epochs,
                steps_per_epoch=sampler.steps_per_epoch,
                asked_to_stop=lambda: stop.name is not None,
                synchronise=setup.state.synchronise,
                validate=self._validate if setup.dataset.validation else None,
                one_process=backend.size == 1,
            )
        return saver.progress, rows

    def _tensorboard(
        self, sinks: list[Callable[[Row], None]], first_step: int
    ) -> list[keras.callbacks.Callback]:
        """Lets TensorBoard's scalars be written, and returns what writes the rest."""
        if not (self.config.logging.tensorboard and self._backend.is_chief):
            return []
        folder = self.directory.path / "tensorboard"
        sinks.append(TensorBoardScalars(folder))
        return tensorboard_callbacks(folder, self.setup, first_step)

    def _validate(self) -> dict[str, float]:
        assert self.setup.dataset.validation is not None
        with self.setup.training.evaluated_weights():
            return self.setup.evaluate(self.setup.dataset.validation)

    def _present_rate(self) -> float:
        return float(keras.ops.convert_to_numpy(self.setup.optimizer.learning_rate))

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory.path / "checkpoints", self.config.checkpoint.keep)

    def _restore(self, checkpoints: Checkpoints) -> Progress:
        resume = self.config.checkpoint.resume
        if self.directory.begun:
            found, origin = checkpoints.load_newest(), str(self.directory.path)
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

    def _restore_best(self) -> bool:
        """Goes back to the best epoch's state, if the run looks for it and there is one."""
        best = self._checkpoints().best
        if not self.config.train.early_stopping or not best.exists():
            return False
        arrays, _ = read_checkpoint(best)
        self.setup.state.restore(arrays, str(best))
        return True

    def _finish(
        self, resolved: dict[str, Any], progress: Progress, rows: list[Row]
    ) -> dict[str, Any]:
        config, setup, backend = self.config, self.setup, self._backend
        epoch = math.ceil(progress.step / setup.sampler.steps_per_epoch)
        if backend.run_on_chief(self._restore_best):
            setup.state.broadcast()
            epoch = progress.best_epoch + 1
        if setup.ema is not None:
            setup.ema.copy_to_model()
        test = setup.evaluate(setup.dataset.test) if setup.dataset.test else {}
        agree = is_identical_everywhere(backend, setup.model.weights)
        setup.compile_with_plain_optimizer()
        summary = make_summary(
            config.recipe, resolved, progress, rows, setup.model, saved_epoch=epoch
        )
        summary |= {"weights_agree": agree}
        summary |= {f"test_{name}": test.get(name) for name in ("loss", "accuracy")}
        backend.run_on_chief(lambda: self._write(summary))
        log_summary(self.directory.path, summary)
        return summary

    def _write(self, summary: dict[str, Any]) -> None:
        config, setup = self.config, self.setup
        flip = config.train.test_flip
        note = ModelMetadata(setup.dataset.classes, config.data.pixels, setup.logits, flip)
        save_model(self.directory.path / "model.keras", setup.model, note)
        write_json(self.directory.path / "summary.json", summary)


def _chosen(directory: RunDirectory) -> tuple[str, bool]:
    return str(directory.path), directory.begun
