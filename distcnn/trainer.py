"""The composition root: builds the parts of a run from its configuration, then trains."""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import keras

from distcnn.averaging import WeightAverage
from distcnn.callbacks.dispatch import Dispatch
from distcnn.callbacks.guard import FiniteGuard
from distcnn.callbacks.progress import ProgressDisplay
from distcnn.callbacks.recorder import MetricsFile, Recorder, Row
from distcnn.callbacks.saver import Saver, Stopped
from distcnn.callbacks.tensorboard import Profiler, TensorBoardImages, TensorBoardScalars
from distcnn.checkpoint import Checkpoints, Progress, find_checkpoint, read_checkpoint, restore
from distcnn.config import Config
from distcnn.data.dataset import Dataset, load_dataset, offered_shape
from distcnn.data.pipeline import EpochOrder, evaluation_dataset, training_dataset
from distcnn.data.sources import open_source
from distcnn.data.split import Split
from distcnn.environment import describe_environment
from distcnn.errors import DataError, UsageError
from distcnn.files import write_json
from distcnn.model_file import ModelNote, save_model
from distcnn.models import build_model, load_object, returns_logits
from distcnn.optimizer import build_optimizer, learning_rate, scaled_learning_rate
from distcnn.precision import apply_precision, find_hardware, resolve_precision
from distcnn.run_directory import RunDirectory
from distcnn.signals import StopRequest
from distcnn.summary import log_resolved, log_summary, make_summary
from distcnn.training_model import TrainingModel

log = logging.getLogger("distcnn")


class Trainer:
    """Trains one classifier as a configuration says.

    Building it checks everything and writes nothing; `fit` makes the run directory.

    Args:
        config: What the run is.
        callbacks: Keras callbacks of the user's own; they see the classifier as `self.model`.

    Attributes:
        model: The classifier.
        dataset: Its images.
        directory: The run directory.

    Raises:
        DistcnnError: If the data, the model or the run directory cannot be used.

    Example:
        >>> Trainer(Config(recipe="digits", data=DataConfig(name="digits"))).fit()
    """

    def __init__(self, config: Config, callbacks: Sequence[keras.callbacks.Callback] = ()) -> None:
        self.config = config
        self.directory = RunDirectory.choose(config)
        self._hardware = find_hardware()
        self.precision = resolve_precision(config.precision, self._hardware)
        apply_precision(config.precision, self.precision)
        keras.utils.set_random_seed(config.train.seed)

        source = open_source(config.data)
        offered = offered_shape(config.data, source)
        self.model = build_model(config.model, offered, len(source.classes))
        image_shape = self.model.input_shape[1:]
        self.dataset: Dataset = load_dataset(config.data, source, image_shape, config.train.seed)

        batch_size = config.train.global_batch_size or config.train.batch_size
        if batch_size > len(self.dataset.train):
            raise DataError(
                f"the batch of {batch_size} images is larger than the {len(self.dataset.train)} "
                "training images; lower --train.batch_size"
            )
        self.order = EpochOrder(len(self.dataset.train), batch_size, config.train.seed)
        total_steps = config.train.epochs * self.order.steps_per_epoch
        if config.logging.profile and int(config.logging.profile.split(",")[1]) > total_steps:
            raise UsageError(
                f"logging.profile is {config.logging.profile}, but the run has {total_steps} steps"
            )
        self._peak_rate = scaled_learning_rate(config.optimizer, batch_size)
        self._compile()
        own = [load_object(path, "train.callbacks")() for path in config.train.callbacks]
        self._user_callbacks = [*callbacks, *own]

    def _compile(self) -> None:
        config, order = self.config, self.order
        total_steps = config.train.epochs * order.steps_per_epoch
        rate = learning_rate(config.optimizer, self._peak_rate, order.steps_per_epoch, total_steps)
        self.optimizer = build_optimizer(config.optimizer, rate, self.model, self.precision.policy)
        self.logits = returns_logits(config.model, self.model)
        ema = config.optimizer.ema
        self.training = TrainingModel(
            self.model,
            config.data.pixels,
            steps_per_epoch=order.steps_per_epoch,
            average=WeightAverage(self.model, ema) if ema else None,
        )
        compiled = compile_arguments(self.logits)
        self._accuracy = compiled["metrics"][0]
        self.training.compile(
            optimizer=self.optimizer,
            steps_per_execution=config.train.steps_per_execution,
            jit_compile=self.precision.xla,
            auto_scale_loss=False,
            **compiled,
        )
        self.model.compile(
            optimizer=self.optimizer, auto_scale_loss=False, **compile_arguments(self.logits)
        )

    def fit(self) -> dict[str, Any] | None:
        """Trains, evaluates on the test images once, and writes the run directory.

        Returns:
            The content of `summary.json`, or None if a signal stopped the run after it was saved.

        Raises:
            DistcnnError: If the run cannot go on; what was saved before stays.
        """
        stop = StopRequest()
        resolved = self.resolved()
        self.directory.create(self.config, describe_environment(self._hardware, resolved))
        try:
            with stop.listening():
                log_resolved(self.directory.path, resolved)
                try:
                    progress, rows = self._train(stop)
                except Stopped:
                    log.info(
                        "stopped by %s after step %d; the same command goes on from there",
                        stop.name,
                        self.training.step,
                    )
                    return None
                return self._finish(resolved, progress, rows)
        finally:
            self.directory.close()

    def resolved(self) -> dict[str, Any]:
        """Returns what the configuration became: strategy, precision, batch, rate, steps."""
        config, order, precision = self.config, self.order, self.precision
        return {
            "model": config.model.factory or config.model.name,
            "data": config.data.name,
            "strategy": "one_device",
            "world_size": 1,
            "device": self._hardware.gpu or "CPU",
            "precision": precision.policy,
            "precision_reason": precision.policy_reason,
            "xla": precision.xla,
            "xla_reason": precision.xla_reason,
            "per_worker_batch_size": order.global_batch_size,
            "global_batch_size": order.global_batch_size,
            "base_learning_rate": config.optimizer.lr,
            "learning_rate": self._peak_rate,
            "steps_per_epoch": order.steps_per_epoch,
            "steps": order.steps_per_epoch * config.train.epochs,
            "parameters": self.model.count_params(),
            "training_images": len(self.dataset.train),
            "validation_images": len(self.dataset.validation or ()),
            "test_images": len(self.dataset.test or ()),
        }

    def _train(self, stop: StopRequest) -> tuple[Progress, list[Row]]:
        config, order, training = self.config, self.order, self.training
        variables = self._state()
        checkpoints = self._checkpoints()
        progress = self._restore(variables, checkpoints)
        training.start_at(progress.step)
        rows = self.directory.cut_metrics(progress.step)
        epochs, done_epochs = config.train.epochs, progress.step // order.steps_per_epoch
        stopped_early = bool(
            config.train.early_stopping
            and progress.best_epoch >= 0
            and done_epochs - 1 - progress.best_epoch >= config.train.early_stopping
        )
        if stopped_early or done_epochs >= epochs:
            return progress, rows

        metrics_file = MetricsFile(self.directory.path / "metrics.jsonl")
        display = ProgressDisplay(
            config.logging.progress, epochs, order.steps_per_epoch, progress.step
        )
        sinks: list[Callable[[Row], None]] = [metrics_file, rows.append, display]
        observers: list[keras.callbacks.Callback] = []
        if config.logging.tensorboard:
            sinks.append(TensorBoardScalars(self.directory.path / "tensorboard"))
            observers += self._tensorboard_callbacks(progress.step)
        every = config.logging.every_steps
        recorder = Recorder(training, order, every, self._present_rate, sinks, display.advance)
        saver = Saver(
            training,
            variables,
            checkpoints,
            progress,
            recorder.measured,
            every_epochs=config.checkpoint.every_epochs,
            patience=config.train.early_stopping,
            stop=stop,
        )
        guard = FiniteGuard(training, every)
        callbacks = [guard, recorder, *observers, *self._user_callbacks, saver]
        with metrics_file, display:
            training.fit(
                self.training_batches(progress.step),
                epochs=epochs,
                initial_epoch=done_epochs,
                steps_per_epoch=order.steps_per_epoch,
                shuffle=False,  # the data set has its own order
                validation_data=self._batches(self.dataset.validation),
                verbose=0,
                callbacks=Dispatch(
                    callbacks,
                    model=self.model,
                    first_batch=training.step_in_epoch,
                    epochs=epochs,
                    steps=order.steps_per_epoch,
                ),
            )
        return saver.progress, rows

    def _tensorboard_callbacks(self, first_step: int) -> list[keras.callbacks.Callback]:
        config, folder = self.config, self.directory.path / "tensorboard"
        callbacks: list[keras.callbacks.Callback] = []
        if config.logging.images:
            callbacks.append(
                TensorBoardImages(
                    folder,
                    self.training,
                    self.training_batches(first_step),
                    self.dataset.validation,
                    self.dataset.classes,
                    logits=self.logits,
                    batch_size=config.train.eval_batch_size,
                )
            )
        if config.logging.profile:
            first, last = map(int, config.logging.profile.split(","))
            callbacks.append(Profiler(folder, self.training, first, last))
        return callbacks

    def training_batches(self, first_step: int) -> Any:
        """Returns the training batches from a global step to the end of the run."""
        return training_dataset(
            self.dataset.train,
            len(self.dataset.classes),
            self.order,
            self.config.data.augment,
            first_step=first_step,
            last_step=self.order.steps_per_epoch * self.config.train.epochs,
        )

    def _batches(self, split: Split | None) -> Any:
        if split is None:
            return None
        size = self.config.train.eval_batch_size
        return evaluation_dataset(split, len(self.dataset.classes), size)

    def _present_rate(self) -> float:
        return float(self.optimizer.learning_rate)

    def _state(self) -> dict[str, list[Any]]:
        average = self.training.average
        return {
            "model": self.model.variables,
            "optimizer": self.optimizer.variables,
            "average": average.variables if average else [],
            "metrics": self.training.metric_variables + self._accuracy.variables,
        }

    def _checkpoints(self) -> Checkpoints:
        return Checkpoints(self.directory.path / "checkpoints", self.config.checkpoint.keep)

    def _restore(self, variables: dict[str, list[Any]], checkpoints: Checkpoints) -> Progress:
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
        restore(variables, arrays, origin)
        log.info("resumed         %s at step %d", origin, progress.step)
        return progress

    def _finish(
        self, resolved: dict[str, Any], progress: Progress, rows: list[Row]
    ) -> dict[str, Any]:
        config = self.config
        epoch = progress.step // self.order.steps_per_epoch
        best = self._checkpoints().best
        if config.train.early_stopping and best.exists():
            arrays, _ = read_checkpoint(best)
            restore(self._state(), arrays, str(best))
            epoch = progress.best_epoch + 1
        if self.training.average is not None:
            self.training.average.install()
        test_loss, test_accuracy = self._test()
        note = ModelNote(self.dataset.classes, config.data.pixels, self.logits)
        # Compiled at a constant rate, so that plain Keras can load it and train on.
        fresh = build_optimizer(config.optimizer, self._peak_rate, self.model, "float32")
        self.model.compile(fresh, auto_scale_loss=False, **compile_arguments(self.logits))
        save_model(self.directory.path / "model.keras", self.model, note)
        summary = make_summary(
            config.recipe, resolved, progress, rows, self.model, saved_epoch=epoch
        )
        summary |= {"test_loss": test_loss, "test_accuracy": test_accuracy}
        write_json(self.directory.path / "summary.json", summary)
        log_summary(self.directory.path, summary)
        return summary

    def _test(self) -> tuple[float | None, float | None]:
        if self.dataset.test is None:
            return None, None
        results = keras.Model.evaluate(
            self.training, self._batches(self.dataset.test), verbose=0, return_dict=True
        )
        return float(results["loss"]), float(results["accuracy"])


def compile_arguments(logits: bool) -> dict[str, Any]:
    """Returns the loss and the metric of a classifier with one-hot labels."""
    return {
        "loss": keras.losses.CategoricalCrossentropy(from_logits=logits),
        "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
    }
