"""Compares an export, loaded by its own runtime, with the Keras model."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from distcnn.config.task import Task
from distcnn.inference.exporting.runtime import Run

_BATCH = 32
_WARM_UPS = 3
_MOST_RUNS, _MOST_SECONDS = 50, 1.0
_NEAR = 0.1
"""How far a number may be from that of Keras, in standard deviations of the true numbers. Errors of
that size take 0.01 off the coefficient of determination."""


@dataclass(frozen=True)
class Parity:
    """How an export differs from the Keras model, and how fast it is.

    Attributes:
        largest_difference: Of the probabilities of any image; of its numbers, in their own units.
        agreement: Fraction of the images with the same most probable class; with the same labels
            above 0.5; or whose numbers are all within a tenth of their standard deviation.
        accuracy: Fraction of the images whose class, or whose labels, are right; None for numbers.
        milliseconds: Median time for a batch of one image.
        mae: Mean absolute error of the numbers; None for classes.
    """

    largest_difference: float
    agreement: float
    accuracy: float | None
    milliseconds: float
    mae: float | None = None


def outputs_of(run: Run, inputs: np.ndarray) -> np.ndarray:
    """Returns the outputs for all inputs, float32 `(images, classes)`."""
    starts = range(0, len(inputs), _BATCH)
    return np.concatenate([run(inputs[start : start + _BATCH]) for start in starts])


def compare(
    run: Run,
    inputs: np.ndarray,
    expected: np.ndarray,
    labels: np.ndarray,
    task: Task = "classification",
) -> Parity:
    """Runs an export on images and compares it with the outputs of the Keras model.

    Args:
        run: The export.
        inputs: What it takes: images, or the bytes of files.
        expected: Outputs of the Keras model, float32 `(images, classes)`.
        labels: True labels, as `Split.labels`.
        task: What they are.
    """
    found = outputs_of(run, inputs).astype(np.float64)
    differences = np.abs(found - expected)
    # A difference that is not a number is the largest there can be.
    largest = float(np.nan_to_num(differences, nan=np.inf).max())
    milliseconds = _milliseconds(run, inputs[:1])
    if task == "regression":
        near = (differences <= _NEAR * _spread(labels)).all(axis=1)
        mae = float(np.mean(np.abs(found - labels)))
        return Parity(largest, float(np.mean(near)), None, milliseconds, mae)
    if task == "multilabel":
        has = found > 0.5
        same = (has == (expected > 0.5)).all(axis=1) & ~np.isnan(found).any(axis=1)
        right = (has == labels).all(axis=1)
    else:
        best = found.argmax(axis=1)
        same, right = best == expected.argmax(axis=1), best == labels
    return Parity(largest, float(np.mean(same)), float(np.mean(right)), milliseconds)


def _spread(labels: np.ndarray) -> np.ndarray:
    """Returns the standard deviation of each number; its size where all images have the same."""
    deviations = labels.std(axis=0, dtype=np.float64)
    return np.where(deviations > 0, deviations, np.abs(labels).max(axis=0))


def _milliseconds(run: Run, one: np.ndarray) -> float:
    for _ in range(_WARM_UPS):
        run(one)
    times: list[float] = []
    while len(times) < _MOST_RUNS and sum(times) < _MOST_SECONDS:
        start = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
