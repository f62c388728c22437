"""The plain Keras script against distcnn, batch by batch in turn, in one process."""

import time
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.benchmarking.input_reader import InputReader
from distcnn.benchmarking.statistics import noise_floor, ratio_of_quartiles
from distcnn.benchmarking.step_timing import TimedSteps, require_steps
from distcnn.config import AugmentConfig
from distcnn.data.pipeline import evaluation_dataset
from distcnn.models.building import build_model
from distcnn.optim.optimizers import plain_optimizer
from distcnn.training.setup import TrainingSetup

_WARMUP = 5
_EVALUATED_IMAGES = 1024
_READ_SECONDS = 0.3


class PlainScript:
    """What one would write without distcnn: `compile`, then `fit` on arrays of float32 pixels.

    Args:
        setup: The run whose model, optimizer and batch size it takes; it computes in float32.
        most: How many of the images it needs at most; they are held in memory.
    """

    def __init__(self, setup: TrainingSetup, most: int) -> None:
        config, dataset = setup.config, setup.dataset
        self.batch_size = setup.sampler.global_batch_size
        policy = keras.config.dtype_policy()
        keras.config.set_dtype_policy("float32")
        try:
            classes = len(dataset.classes)
            self.model = build_model(config.model, setup.model.input_shape[1:], classes)
        finally:
            keras.config.set_dtype_policy(policy)
        optimizer = plain_optimizer(config.optimizer, config.optimizer.lr, self.model)
        self.model.compile(optimizer, **setup.objective.compile_arguments())
        count = min(len(dataset.train), max(most, _EVALUATED_IMAGES))
        self.stored = dataset.train.gather(tf.range(count, dtype=tf.int64))
        self.images = setup.evaluation.scaled(self.stored).numpy()
        self.labels = np.eye(classes, dtype=np.float32)[dataset.train.labels[:count]]

    def fit(self, steps: int, between: Callable[[bool], None], times: list[float]) -> None:
        """Trains by `fit`, and after each batch lets something else happen.

        Args:
            steps: Batches.
            between: Called after each batch; told whether that batch was a full one.
            times: Takes the seconds of each batch, input included.
        """
        per_epoch = -(-len(self.images) // self.batch_size)
        full = len(self.images) // self.batch_size
        timer = _Timer(steps, full, between, times)
        self.model.fit(
            self.images,
            self.labels,
            batch_size=self.batch_size,
            epochs=-(-steps // per_epoch),
            callbacks=[timer],
            verbose=0,
        )

    def naive_batches(self, augmentation: AugmentConfig) -> tf.data.Dataset:
        """Returns what one would write without distcnn: images mapped one by one, then batched.

        Args:
            augmentation: Of which it does flip and crop.
        """

        def varied(image: tf.Tensor, label: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            if augmentation.flip:
                image = tf.image.random_flip_left_right(image)
            if augmentation.crop:
                margin = [augmentation.crop] * 2
                padded = tf.pad(image, [margin, margin, [0, 0]])
                image = tf.image.random_crop(padded, image.shape)
            return tf.cast(image, tf.float32) / 255.0, label

        images = tf.data.Dataset.from_tensor_slices((self.stored, self.labels))
        return images.map(varied).batch(self.batch_size)


class _Timer(keras.callbacks.Callback):
    def __init__(
        self, steps: int, full: int, between: Callable[[bool], None], times: list[float]
    ) -> None:
        super().__init__()
        self._left, self._full, self._between, self._times = steps, full, between, times
        self._start = 0.0

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        elapsed = time.perf_counter() - self._start
        if self._left <= 0:
            self.model.stop_training = True
            return
        self._left -= 1
        self._times.append(elapsed)
        self._between(batch < self._full)


def compare_with_plain(setup: TrainingSetup, repeats: int) -> list[dict[str, Any]]:
    """Measures training, evaluation and prediction of both in turn.

    Args:
        setup: The run, on one device, built and not begun.
        repeats: Training steps of each; the others are repeated at most 25 times.

    Returns:
        The content of a `distcnn.benchmarking.results.Comparison` for each of the four.
    """
    require_steps(setup)
    plain = PlainScript(setup, (repeats + _WARMUP) * setup.sampler.global_batch_size)
    found = {"training step": (_training(plain, setup, repeats), plain.batch_size)}
    count = min(_EVALUATED_IMAGES, len(plain.images))
    images, labels = plain.images[:count], plain.labels[:count]
    split = setup.dataset.train.subset(np.arange(count))
    size, classes = setup.config.train.eval_batch_size, len(setup.dataset.classes)
    stored = evaluation_dataset(split, classes, size).map(lambda pixels, _: pixels)
    few = min(repeats, 25)
    naive = InputReader(plain.naive_batches(setup.config.data.augment))
    own = InputReader(setup.training_batches(0))
    found["input of a batch"] = (_read_interleaved(naive, own, few), plain.batch_size)
    # Both with the batch size that they use by themselves.
    found["evaluation"] = (
        _interleaved(
            lambda: plain.model.evaluate(images, labels, verbose=0),
            lambda: setup.evaluate(split),
            few,
        ),
        count,
    )
    found["prediction"] = (
        _interleaved(
            lambda: plain.model.predict(images, verbose=0),
            lambda: setup.evaluation.predict(stored),
            few,
        ),
        count,
    )
    return [
        {
            "what": what,
            "batch": batch,
            "repeats": len(ours),
            **_ratio(theirs, ours),
            "plain_precision": "float32",
            "distcnn_precision": setup.precision.policy,
        }
        for what, ((theirs, ours), batch) in found.items()
    ]


def _training(
    plain: PlainScript, setup: TrainingSetup, repeats: int
) -> tuple[list[float], list[float]]:
    batches = setup.backend.iterate(setup.training_batches(0))
    ours = TimedSteps(setup.training, batches)
    times: list[float] = []
    pairs: list[tuple[float, float]] = []

    def between(full: bool) -> None:
        before = len(ours.seconds)
        ours.repeat()
        if full and len(ours.seconds) > before:
            pairs.append((times[-1], ours.seconds[-1]))

    plain.fit(repeats + _WARMUP, between, times)
    theirs, own = zip(*pairs[_WARMUP:], strict=True)
    return list(theirs), list(own)


def _interleaved(
    first: Callable[[], Any], second: Callable[[], Any], repeats: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(repeats + 1):
        for function, seconds in zip((first, second), times, strict=True):
            start = time.perf_counter()
            function()
            if number:  # the first call traces
                seconds.append(time.perf_counter() - start)
    return times


def _read_interleaved(
    first: InputReader, second: InputReader, repeats: int
) -> tuple[list[float], list[float]]:
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for reader, seconds in zip((first, second), times, strict=True):
            batches, _ = reader.read(_READ_SECONDS)
            seconds.append(1 / batches)
    return times


def _ratio(theirs: list[float], ours: list[float]) -> dict[str, float]:
    ratio, low, high = ratio_of_quartiles(theirs, ours)
    return {
        "plain_ms": float(np.percentile(theirs, 25)) * 1e3,
        "distcnn_ms": float(np.percentile(ours, 25)) * 1e3,
        "ratio": ratio,
        "ratio_low": low,
        "ratio_high": high,
        "noise": noise_floor(theirs),
    }
