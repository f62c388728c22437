"""Compares distcnn with a plain Keras script, alternating between the two in one process."""

import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.benchmarking.input_reader import InputReader
from distcnn.benchmarking.progress import Budget, Say, rounds, say_progress
from distcnn.benchmarking.statistics import noise_floor, ratio_of_quartiles
from distcnn.benchmarking.step_timing import TimedSteps, require_steps
from distcnn.config import AugmentConfig
from distcnn.data.pipeline import evaluation_dataset
from distcnn.models.building import build_model
from distcnn.models.head import Head
from distcnn.optim.optimizers import plain_optimizer
from distcnn.training.setup import TrainingSetup

_WARMUP = 5
_EVALUATED_IMAGES = 1024
_MOST_REPEATS = 25
_READ_SECONDS = 0.3

_PairedTimes = tuple[list[float], list[float]]
"""Seconds of the plain script and of distcnn, taken in turn."""


class PlainScript:
    """The script one would write without distcnn: `compile`, then `fit` on float32 pixel arrays.

    Args:
        setup: The run that provides the model, the optimizer and the batch size.
        images_needed: Number of images to hold in memory, if the data set has as many.
        policy: Dtype policy of the script, whatever the precision of the run.
    """

    def __init__(
        self, setup: TrainingSetup, images_needed: int, *, policy: str = "float32"
    ) -> None:
        config, dataset = setup.config, setup.dataset
        self.batch_size = setup.sampler.global_batch_size
        policy_of_run = keras.config.dtype_policy()
        keras.config.set_dtype_policy(policy)
        try:
            classes = len(dataset.classes)
            head = Head.of(dataset.task, dataset.train.labels, dataset.classes)
            self.model = build_model(config.model, setup.model.input_shape[1:], classes, head)
        finally:
            keras.config.set_dtype_policy(policy_of_run)
        if not setup.objective.is_own:
            optimizer = plain_optimizer(config.optimizer, config.optimizer.lr, self.model)
            self.model.compile(optimizer, **setup.objective.compile_arguments(classes))
        count = min(len(dataset.train), images_needed)
        self.stored = dataset.train.gather(tf.range(count, dtype=tf.int64))
        self.images = setup.evaluation.scaled(self.stored).numpy()
        labels = dataset.train.labels[:count]
        rows = np.eye(classes)[labels] if labels.ndim == 1 else labels
        self.labels = setup.objective.targets(tf.constant(rows, tf.float32)).numpy()

    def fit(self, steps: int, after_batch: Callable[[bool], bool], times: list[float]) -> None:
        """Trains with `fit` and calls a function after each batch.

        Args:
            steps: Number of batches.
            after_batch: Called after each batch with whether the batch was a full one; returns
                whether to go on.
            times: List to which the seconds of each batch, input included, are appended.
        """
        per_epoch = -(-len(self.images) // self.batch_size)
        full_batches = len(self.images) // self.batch_size
        timer = _Timer(steps, full_batches, after_batch, times)
        self.model.fit(
            self.images,
            self.labels,
            batch_size=self.batch_size,
            epochs=-(-steps // per_epoch),
            callbacks=[timer],
            verbose=0,
        )

    def resident_batches(self) -> tf.data.Dataset:
        """Returns the first batch, again and again."""
        batch = (self.images[: self.batch_size], self.labels[: self.batch_size])
        return tf.data.Dataset.from_tensors(batch).repeat()

    def fit_batches(
        self, batches: tf.data.Dataset, steps: int, times: list[float]
    ) -> dict[str, list[float]]:
        """Trains with `fit` on full batches.

        Args:
            batches: The batches; at least as many as there are steps.
            steps: Number of batches.
            times: List to which the seconds of each batch are appended.

        Returns:
            The history of `fit`.
        """
        timer = _Timer(steps, steps, lambda _: True, times)
        history = self.model.fit(
            batches, steps_per_epoch=steps, shuffle=False, callbacks=[timer], verbose=0
        )
        content: dict[str, list[float]] = history.history
        return content

    def naive_batches(self, augmentation: AugmentConfig) -> tf.data.Dataset:
        """Returns the input pipeline one would write without distcnn: `map` by image, then `batch`.

        Args:
            augmentation: The augmentation, of which only flip and crop are applied.
        """

        def augment(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if augmentation.flip:
                image = tf.image.random_flip_left_right(image)
            if augmentation.crop:
                margin = [augmentation.crop] * 2
                padded = tf.pad(image, [margin, margin, [0, 0]])
                image = tf.image.random_crop(padded, image.shape)
            return tf.cast(image, tf.float32) / 255.0, label

        images = tf.data.Dataset.from_tensor_slices((self.stored, self.labels))
        return images.map(augment).batch(self.batch_size)


class _Timer(keras.callbacks.Callback):
    def __init__(
        self,
        steps: int,
        full_batches: int,
        after_batch: Callable[[bool], bool],
        times: list[float],
    ) -> None:
        super().__init__()
        self._steps_left = steps
        self._full_batches = full_batches
        self._after_batch = after_batch
        self._times = times
        self._start = 0.0

    @override
    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    @override
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        elapsed = time.perf_counter() - self._start
        if self._steps_left <= 0:
            self.model.stop_training = True
            return
        self._steps_left -= 1
        self._times.append(elapsed)
        if not self._after_batch(batch < self._full_batches):
            self._steps_left = 0
            self.model.stop_training = True


def compare_with_plain(
    setup: TrainingSetup, repeats: int, budget: Budget, say: Say = say_progress
) -> list[dict[str, Any]]:
    """Times training, input, evaluation and prediction of distcnn and of the plain script in turn.

    Args:
        setup: The run on one device, built but not started.
        repeats: Number of training steps of each side; the rest is repeated at most 25 times.
        budget: Time to measure in; everything is measured at least once.
        say: Takes lines of progress.

    Returns:
        The content of a `distcnn.benchmarking.results.Comparison` for each of the four.
    """
    require_steps(setup)
    batch = setup.sampler.global_batch_size
    say("plain Keras: building the model and its images")
    plain = PlainScript(setup, max((repeats + _WARMUP) * batch, _EVALUATED_IMAGES))
    training_times = _time_training(plain, setup, repeats, budget.part(0.5), say)
    repeats = min(repeats, _MOST_REPEATS)
    say("input of a batch: timing")
    input_times = _time_input(plain, setup, repeats, budget.part(0.2))
    evaluated = _images_to_evaluate(plain, training_times, budget)
    entries = [("training step", batch, training_times), ("input of a batch", batch, input_times)]
    for what, measure, fraction in (
        ("evaluation", _time_evaluation, 0.5),
        ("prediction", _time_prediction, 1.0),
    ):
        say(f"{what}: tracing, {evaluated} images")
        times = measure(plain, setup, evaluated, repeats, budget.part(fraction), say)
        entries.append((what, evaluated, times))
    return [_comparison(setup, what, size, *times) for what, size, times in entries]


def _images_to_evaluate(plain: PlainScript, training: _PairedTimes, budget: Budget) -> int:
    """Returns how many images to evaluate: fewer for a large model in a small budget.

    A forward pass takes about a third of a training step. Each side evaluates and predicts once to
    trace and once to be timed, within half of what is left.
    """
    per_image = (min(training[0]) + min(training[1])) / plain.batch_size / 3
    fitting = int(max(budget.left, 0.0) / 2 / (4 * per_image))
    return min(len(plain.images), _EVALUATED_IMAGES, max(plain.batch_size, fitting))


def _time_training(
    plain: PlainScript, setup: TrainingSetup, repeats: int, budget: Budget, say: Say
) -> _PairedTimes:
    say("training step: tracing")
    timed = TimedSteps(setup.training, setup.backend.iterate(setup.training_batches(0)))
    times: list[float] = []
    pairs: list[tuple[float, float]] = []
    turns = rounds("training step", repeats + _WARMUP, budget, say)

    def step_distcnn(plain_batch_was_full: bool) -> bool:
        count = len(timed.seconds)
        timed.repeat()
        if plain_batch_was_full and len(timed.seconds) > count:
            pairs.append((times[-1], timed.seconds[-1]))
        return next(turns, None) is not None or len(pairs) <= _WARMUP

    next(turns)
    plain.fit(repeats + _WARMUP, step_distcnn, times)
    plain_seconds, distcnn_seconds = zip(*pairs[_WARMUP:], strict=True)
    return list(plain_seconds), list(distcnn_seconds)


def _time_input(
    plain: PlainScript, setup: TrainingSetup, repeats: int, budget: Budget
) -> _PairedTimes:
    readers = (
        InputReader(plain.naive_batches(setup.config.data.augment)),
        InputReader(setup.training_batches(0)),
    )
    times: _PairedTimes = ([], [])
    for _ in rounds("input of a batch", repeats, budget, say_progress):
        for reader, seconds in zip(readers, times, strict=True):
            batches_per_second, _ = reader.read(_READ_SECONDS)
            seconds.append(1 / batches_per_second)
    return times


def _time_evaluation(
    plain: PlainScript, setup: TrainingSetup, count: int, repeats: int, budget: Budget, say: Say
) -> _PairedTimes:
    """Times evaluation, each side with its default batch size."""
    images, labels = plain.images[:count], plain.labels[:count]
    split = setup.dataset.train.subset(np.arange(count))
    return _time_in_turn(
        lambda: plain.model.evaluate(images, labels, verbose=0),
        lambda: setup.evaluate(split),
        rounds("evaluation", repeats + 1, budget, say),
    )


def _time_prediction(
    plain: PlainScript, setup: TrainingSetup, count: int, repeats: int, budget: Budget, say: Say
) -> _PairedTimes:
    """Times prediction, each side with its default batch size."""
    images = plain.images[:count]
    split = setup.dataset.train.subset(np.arange(count))
    size, classes = setup.config.train.eval_batch_size, len(setup.dataset.classes)
    stored = evaluation_dataset(split, classes, size).map(lambda pixels, _: pixels)
    return _time_in_turn(
        lambda: plain.model.predict(images, verbose=0),
        lambda: setup.evaluation.predict(stored),
        rounds("prediction", repeats + 1, budget, say),
    )


def _time_in_turn(
    plain: Callable[[], Any], distcnn: Callable[[], Any], turns: Iterator[int]
) -> _PairedTimes:
    """Times two functions in turn; at least one round after the first, which traces, counts."""
    traced: _PairedTimes = ([], [])
    times: _PairedTimes = ([], [])
    for number in itertools.chain(turns, [-1]):
        if number == -1 and times[0]:
            break
        for function, seconds in zip((plain, distcnn), times if number else traced, strict=True):
            start = time.perf_counter()
            function()
            seconds.append(time.perf_counter() - start)
    return times


def _comparison(
    setup: TrainingSetup,
    what: str,
    batch: int,
    plain_seconds: list[float],
    distcnn_seconds: list[float],
) -> dict[str, Any]:
    ratio, low, high = ratio_of_quartiles(plain_seconds, distcnn_seconds)
    return {
        "what": what,
        "batch": batch,
        "repeats": len(distcnn_seconds),
        "plain_ms": float(np.percentile(plain_seconds, 25)) * 1e3,
        "distcnn_ms": float(np.percentile(distcnn_seconds, 25)) * 1e3,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "noise": noise_floor(plain_seconds),
        "plain_precision": "float32",
        "distcnn_precision": setup.precision.policy,
    }
