"""Compares an export, loaded by its own runtime, with the Keras model."""

import statistics
import time
from dataclasses import dataclass

import numpy as np

from distcnn.inference.exporting.runtime import Run

_BATCH = 32
_WARM_UPS = 3
_MOST_RUNS, _MOST_SECONDS = 50, 1.0


@dataclass(frozen=True)
class Parity:
    """How an export differs from the Keras model, and how fast it is.

    Attributes:
        largest_difference: Of the probabilities of any image.
        agreement: Fraction of the images with the same most probable class.
        accuracy: Fraction of the images whose most probable class is the true one.
        milliseconds: Median time for a batch of one image.
    """

    largest_difference: float
    agreement: float
    accuracy: float
    milliseconds: float


def outputs_of(run: Run, inputs: np.ndarray) -> np.ndarray:
    """Returns the probabilities of all inputs, float32 `(images, classes)`."""
    starts = range(0, len(inputs), _BATCH)
    return np.concatenate([run(inputs[start : start + _BATCH]) for start in starts])


def compare(run: Run, inputs: np.ndarray, expected: np.ndarray, labels: np.ndarray) -> Parity:
    """Runs an export on images and compares it with the outputs of the Keras model.

    Args:
        run: The export.
        inputs: What it takes: images, or the bytes of files.
        expected: Probabilities by the Keras model, float32 `(images, classes)`.
        labels: True classes, int64 `(images,)`.
    """
    found = outputs_of(run, inputs)
    differences = np.abs(found.astype(np.float64) - expected)
    best = found.argmax(axis=1)
    # A difference that is not a number is the largest there can be.
    return Parity(
        largest_difference=float(np.nan_to_num(differences, nan=np.inf).max()),
        agreement=float(np.mean(best == expected.argmax(axis=1))),
        accuracy=float(np.mean(best == labels)),
        milliseconds=_milliseconds(run, inputs[:1]),
    )


def _milliseconds(run: Run, one: np.ndarray) -> float:
    for _ in range(_WARM_UPS):
        run(one)
    times: list[float] = []
    while len(times) < _MOST_RUNS and sum(times) < _MOST_SECONDS:
        start = time.perf_counter()
        run(one)
        times.append(time.perf_counter() - start)
    return 1000 * statistics.median(times)
