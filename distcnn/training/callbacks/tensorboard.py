"""Writes what TensorBoard shows: scalars, images, the graph, a profile."""

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.errors import DistcnnError
from distcnn.inference.evaluation import evaluate_split
from distcnn.inference.plots import (
    confusion_figure,
    mistakes_figure,
    stretch_contrast,
    tile,
    to_pixels,
)
from distcnn.launching.command import FOLDER
from distcnn.launching.record import read
from distcnn.storage.metrics_file import MEASUREMENTS
from distcnn.training.callbacks.metrics import Row
from distcnn.training.setup import TrainingSetup
from distcnn.training.step import TrainingStep


def event_writer(folder: Path) -> Any:
    """Returns a writer of TensorBoard's event files.

    Raises:
        DistcnnError: If the folder cannot be written.
    """
    try:
        return tf.summary.create_file_writer(str(folder))
    except tf.errors.OpError as error:
        reason = " ".join(error.message.split())
        if "No space left on device" in reason:
            reason = "No space left on device"
        raise DistcnnError(
            f"TensorBoard's files cannot be written to {folder}: {reason[:300]}; free some space, "
            "or pass --logging.tensorboard false, and run the same command again"
        ) from None


class TensorBoardScalars:
    """Writes every row: validation metrics as `validation`, all others as `train`.

    Args:
        folder: TensorBoard's folder in the run directory.
        stall_seconds: Returns for how many seconds the training has stood still so far, to save.
    """

    def __init__(self, folder: Path, stall_seconds: Callable[[], float] | None = None) -> None:
        self._stall_seconds = stall_seconds
        self._stall_written = 0.0
        self._writers = {name: event_writer(folder / name) for name in ("train", "validation")}

    def __call__(self, row: Row) -> None:
        """Writes one row."""
        step = row["step"]
        scalars = ((k, v) for k, v in row.items() if isinstance(v, float))
        metrics = {k: v for k, v in scalars if k not in MEASUREMENTS}
        with self._writers["train"].as_default(step):
            tf.summary.scalar("learning_rate", row["learning_rate"])
            for name, value in metrics.items():
                if not name.startswith("val_"):
                    tf.summary.scalar(name, value)
            for name in ("images_per_second", "step_ms", "input_wait"):
                if row[name] is not None:
                    tf.summary.scalar(f"speed/{name}", row[name])
            self._write_stall()
        with self._writers["validation"].as_default(step):
            for name, value in metrics.items():
                if name.startswith("val_"):
                    tf.summary.scalar(name.removeprefix("val_"), value)
        for writer in self._writers.values():
            writer.flush()

    def _write_stall(self) -> None:
        """Writes the seconds since the last row in which the training stood still, if it did."""
        stall = self._stall_seconds() if self._stall_seconds is not None else 0.0
        if stall > self._stall_written:
            tf.summary.scalar("speed/save_stall", stall - self._stall_written)
            self._stall_written = stall


class TensorBoardRestarts:
    """Writes the restarts of a launched run as `restarts`, when the row after one is written.

    Args:
        run: The run directory.
    """

    def __init__(self, run: Path) -> None:
        self._record = run / FOLDER
        self._folder = run / "tensorboard" / "restarts"
        self._written = len(read(self._record))

    def __call__(self, row: Row) -> None:
        """Writes the restarts since the last row."""
        restarts = read(self._record)
        new, self._written = restarts[self._written :], len(restarts)
        reached = [restart for restart in new if "seconds" in restart]
        if not reached:
            return
        with event_writer(self._folder).as_default():
            for restart in reached:
                step = restart["resumed_at"]
                tf.summary.scalar("seconds", restart["seconds"]["total"], step)
                for name in ("steps_lost", "workers"):
                    tf.summary.scalar(name, restart[name], step)


def tensorboard_callbacks(
    folder: Path, setup: TrainingSetup, first_step: int
) -> list[keras.callbacks.Callback]:
    """Returns the callbacks that the logging section enables.

    Args:
        folder: TensorBoard's folder in the run directory.
        setup: The run.
        first_step: Global step at which this process begins.
    """
    logging, callbacks = setup.config.logging, []
    if logging.images:
        callbacks.append(TensorBoardImages(folder, setup, setup.training_batches(first_step)))
    if logging.profile:
        first, last = map(int, logging.profile.split(","))
        callbacks.append(Profiler(folder, setup.training, first, last))
    return callbacks


class TensorBoardImages(keras.callbacks.Callback):
    """Writes the graph, a training batch, filters, feature maps, confusion matrix and mistakes.

    The confusion matrix and the worst mistakes are those on the validation images, if there are
    any, at the end of the run.

    Args:
        folder: TensorBoard's folder in the run directory.
        setup: The run.
        batches: Training batches, of which the first is shown.
    """

    reads_logs = False

    def __init__(self, folder: Path, setup: TrainingSetup, batches: tf.data.Dataset) -> None:
        super().__init__()
        # In a separate folder, since TensorBoard follows only the newest file of each.
        self._writer = event_writer(folder / "images")
        self._setup = setup
        self._batch = np.asarray(next(iter(batches.take(1)))[0])

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the graph of the classifier and the first training batch."""
        with self._writer.as_default(self._setup.training.step):
            signature = tf.TensorSpec((None, *self.model.input_shape[1:]), tf.float32)
            forward = tf.function(self.model).get_concrete_function(signature)
            tf.summary.graph(forward.graph)
            self._image("batch/augmented", tile(self._batch[:64]))
        self._write_features()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Writes the first layer's filters and feature maps."""
        self._write_features()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Writes the confusion matrix and the worst mistakes."""
        setup, validation = self._setup, self._setup.dataset.validation
        if validation is None or setup.dataset.task != "classification":
            return
        classes = setup.dataset.classes
        with setup.training.evaluated_weights():
            result = evaluate_split(
                setup.evaluation.predict,
                validation,
                classes,
                logits=setup.objective.logits,
                batch_size=setup.config.train.eval_batch_size,
            )
        with self._writer.as_default(setup.training.step):
            figure = confusion_figure(result.confusion(), classes)
            self._image("validation/confusion_matrix", to_pixels(figure))
            worst = result.worst(25)
            if len(worst):
                counted = np.delete(np.arange(len(validation)), validation.unreadable())
                images = validation.gather(tf.constant(counted[worst], tf.int64)).numpy()
                figure = mistakes_figure(
                    images, result.labels[worst], result.probabilities[worst], classes
                )
                self._image("validation/worst_mistakes", to_pixels(figure))
        self._writer.flush()

    def _write_features(self) -> None:
        convolutions = (x for x in self.model.layers if isinstance(x, keras.layers.Conv2D))
        layer = next(convolutions, None)
        if layer is None:
            return
        kernels = np.asarray(layer.kernel, np.float32).transpose(3, 0, 1, 2)
        if kernels.shape[3] not in (1, 3):
            kernels = kernels.mean(axis=3, keepdims=True)
        example = self._batch[:1]
        maps = keras.Model(self.model.inputs, layer.output)(self._setup.evaluation.scaled(example))
        maps = np.asarray(maps, np.float32)[0].transpose(2, 0, 1)[..., None]
        with self._writer.as_default(self._setup.training.step):
            self._image("first_layer/filters", tile(stretch_contrast(kernels)[:64]))
            self._image("first_layer/input", tile(example))
            self._image("first_layer/feature_maps", tile(stretch_contrast(maps)[:64]))
        self._writer.flush()

    def _image(self, name: str, pixels: np.ndarray) -> None:
        tf.summary.image(name, pixels[None])


class Profiler(keras.callbacks.Callback):
    """Records a profile of a range of steps for TensorBoard's Profile page.

    The steps of one execution are always profiled together.

    Args:
        folder: TensorBoard's folder in the run directory.
        training: The training step.
        first: First global step to profile, counted from 1.
        last: Last global step to profile.
    """

    reads_logs = False

    def __init__(self, folder: Path, training: TrainingStep, first: int, last: int) -> None:
        super().__init__()
        self._folder = str(folder)
        self._training = training
        self._first = first
        self._last = last
        self._running = False
        self._marks = contextlib.ExitStack()

    @override
    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        step = self._training.step
        after_execution = step + self._training.steps_per_execution
        if not self._running and step < self._last and self._first <= after_execution:
            tf.profiler.experimental.start(self._folder)
            self._running = True
        if self._running:  # by these marks, the Profile page knows the steps
            mark = tf.profiler.experimental.Trace("train", step_num=step, _r=1)
            self._marks.enter_context(mark)

    @override
    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        self._marks.close()
        if self._running and self._training.step >= self._last:
            self.on_train_end()

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Stops the profile if the run ends before its last step."""
        self._marks.close()
        if self._running:
            tf.profiler.experimental.stop()
            self._running = False
