"""The model that `fit` trains: the user's own, fed with scaled pixels, counted in global steps."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, Literal

import keras
import tensorflow as tf

from distcnn.averaging import WeightAverage

PIXEL_RANGES: dict[str, tuple[float, float]] = {
    "unit": (1 / 255, 0.0),
    "signed": (2 / 255, -1.0),
    "byte": (1.0, 0.0),
}
"""Scale and offset that map stored pixels in [0, 255] to each range."""


def scale_pixels(images: tf.Tensor, pixels: Literal["unit", "signed", "byte"]) -> tf.Tensor:
    """Maps stored pixels to the range that a model expects.

    Args:
        images: uint8 or float32 tensor, values in [0, 255].
        pixels: Name of the range.

    Returns:
        float32 tensor of the same shape.
    """
    scale, offset = PIXEL_RANGES[pixels]
    return tf.cast(images, tf.float32) * scale + offset


class TrainingModel(keras.Model):
    """Wraps a classifier for `fit`, `evaluate` and `predict` on stored pixels.

    `fit` runs the wrapper, while callbacks see the classifier itself. The wrapper adds what
    `keras.Model` lacks: it scales pixels inside the step, starts in the middle of an epoch, never
    steps past the end of one, measures how long it waits for input, notes the first step whose loss
    is not finite, and averages the weights.

    Args:
        model: The built classifier; the wrapper has no weights of its own.
        pixels: Range of the pixels that the classifier expects.
        steps_per_epoch: Training steps per epoch.
        average: Moving average of the weights to maintain, or None.
    """

    train_function: Callable[..., Any] | None

    def __init__(
        self,
        model: keras.Model,
        pixels: Literal["unit", "signed", "byte"],
        *,
        steps_per_epoch: int,
        average: WeightAverage | None = None,
    ) -> None:
        super().__init__(name="training", dtype="float32")
        self.model = model
        self.average = average
        self.step = 0
        self._step_before = 0
        self._pixels = pixels
        self._steps_per_epoch = steps_per_epoch
        self._replayed = 0
        with tf.device("CPU:0"):
            self._input_wait = tf.Variable(0.0, dtype=tf.float64, trainable=False)
            self._first_bad_step = tf.Variable(-1, dtype=tf.int64, trainable=False)
        self.built = True

    @property
    def stop_training(self) -> bool:
        """The classifier's own flag, which callbacks set."""
        return getattr(self.model, "stop_training", False)

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        if "model" in self.__dict__:
            self.model.stop_training = value

    @property
    def history(self) -> keras.callbacks.History:
        """The history that `fit` returns."""
        return self.model.history

    @property
    def step_in_epoch(self) -> int:
        """Steps of the present epoch that are done."""
        return self.step % self._steps_per_epoch

    def call(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        """Classifies stored pixels.

        Args:
            images: uint8 or float32 in [0, 255], of shape `(batch, height, width, channels)`.
            training: Whether dropout and batch normalisation train.

        Returns:
            The classifier's output, of shape `(batch, classes)`.
        """
        return self.model(self.scaled(images), training=training)

    def scaled(self, images: tf.Tensor) -> tf.Tensor:
        """Maps stored pixels to float32 in the range that the classifier expects."""
        return scale_pixels(images, self._pixels)

    def just_passed(self, interval: int) -> bool:
        """Tells whether the last execution reached or passed a multiple of `interval` steps."""
        return self.step // interval > self._step_before // interval

    def start_at(self, step: int) -> None:
        """Makes the next `fit` go on at a global step; its steps before that are passed over."""
        self.step = step
        self._replayed = self.step_in_epoch

    def take_input_wait(self) -> float:
        """Returns the seconds spent waiting for input since the last call."""
        seconds = float(self._input_wait.numpy())
        self._input_wait.assign(0.0)
        return seconds

    @property
    def metric_variables(self) -> list[keras.Variable]:
        """State of the running mean of the loss."""
        return self._loss_tracker.variables

    @property
    def first_bad_step(self) -> int | None:
        """The first global step whose loss was NaN or infinite, counted from 1, or None."""
        step = int(self._first_bad_step.numpy())
        return step if step >= 0 else None

    @contextlib.contextmanager
    def evaluated_weights(self) -> Iterator[None]:
        """Lends the weights that are evaluated and saved: the averages, if there are any."""
        with self.average.in_place() if self.average else contextlib.nullcontext():
            yield

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        """Evaluates as `keras.Model.evaluate` does, with the averaged weights if there are any."""
        with self.evaluated_weights():
            return super().evaluate(*args, **kwargs)

    def make_train_function(self, force: bool = False) -> Callable[..., Any]:
        """Returns the function that `fit` calls for every `steps_per_execution` steps."""
        if self.train_function is not None and not force:
            return self.train_function
        run_steps = self._make_run_steps()

        def train_function(iterator: Any) -> dict[str, tf.Tensor]:
            if self._replayed > 0:  # done before the run was resumed
                self._replayed -= self.steps_per_execution
                return {}
            left = self._steps_per_epoch - self.step_in_epoch
            count = min(self.steps_per_execution, left)
            logs = run_steps(iterator, tf.constant(self.step, tf.int64), tf.constant(count))
            self._step_before = self.step
            self.step += count
            return logs

        self.train_function = train_function
        return train_function

    def _make_run_steps(self) -> Callable[..., dict[str, tf.Tensor]]:
        train_step = tf.function(
            self.train_step, reduce_retracing=True, jit_compile=self.jit_compile
        )

        def one_step(iterator: Any, step: tf.Tensor) -> None:
            asked = tf.timestamp()
            batch = iterator.get_next()
            with tf.control_dependencies([tf.nest.flatten(batch)[0]]):
                self._input_wait.assign_add(tf.timestamp() - asked)
            train_step(batch)
            bad = ~tf.math.is_finite(self._loss_tracker.result())
            first = bad & (self._first_bad_step < 0)
            self._first_bad_step.assign(tf.where(first, step + 1, self._first_bad_step))
            if self.average is not None:
                self.average.update()

        @tf.autograph.experimental.do_not_convert
        def run_steps(iterator: Any, step: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
            if self.steps_per_execution == 1:
                one_step(iterator, step)
            else:

                def body(done: tf.Tensor) -> tuple[tf.Tensor]:
                    one_step(iterator, step + tf.cast(done, tf.int64))
                    return (done + 1,)

                tf.while_loop(lambda done: done < count, body, [tf.constant(0)])
            return self.get_metrics_result()

        return tf.function(run_steps, reduce_retracing=True)
