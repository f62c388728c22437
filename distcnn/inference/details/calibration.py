"""Calibration: whether a classifier is as often right as it is sure (Guo et al. 2017).

C. Guo, G. Pleiss, Y. Sun, K. Weinberger: On Calibration of Modern Neural Networks, ICML 2017,
arXiv:1706.04599.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

BINS = 15
"""Number of bins of the confidence, as in the paper."""

_LEAST, _MOST = 0.05, 20.0
_STEPS = 100
_FLAT = 1e-9
_ROWS = 4096
_TINY = float(np.finfo(np.float32).tiny)  # least probability, so that its logarithm is finite


@dataclass(frozen=True)
class Reliability:
    """How often something is true, by how probable it was said to be, in bins of equal width.

    Attributes:
        images: Number of images in each bin, int64 `(bins,)`. Bin m holds those whose confidence is
            above m / bins and at most (m + 1) / bins.
        confidence: Mean confidence in each bin, float64; NaN in an empty one.
        accuracy: Fraction that was true, float64; NaN in an empty bin.
    """

    images: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @classmethod
    def of(cls, confidence: np.ndarray, right: np.ndarray, bins: int = BINS) -> "Reliability":
        """Counts predictions.

        Args:
            confidence: Probability of each prediction, `(images,)`.
            right: Whether it is true, bool `(images,)`.
            bins: Number of bins.
        """
        edges = np.linspace(0, 1, bins + 1)
        place = np.digitize(confidence, edges[1:-1], right=True)
        images = np.bincount(place, minlength=bins)
        with np.errstate(invalid="ignore"):
            sure = np.bincount(place, confidence.astype(np.float64), bins) / images
            true = np.bincount(place, right.astype(np.float64), bins) / images
        return cls(images, sure, true)

    @classmethod
    def of_classes(cls, probabilities: np.ndarray, labels: np.ndarray) -> "Reliability":
        """Counts the most probable class of each image.

        Args:
            probabilities: `(images, classes)`.
            labels: True classes, int64 `(images,)`.
        """
        return cls.of(probabilities.max(axis=1), probabilities.argmax(axis=1) == labels)

    @property
    def ece(self) -> float:
        """Expected calibration error, equation 3 of the paper."""
        gaps = np.abs(self.accuracy - self.confidence)[self.images > 0]
        counts = self.images[self.images > 0]
        return float(np.sum(gaps * counts) / counts.sum())

    def rows(self) -> list[dict[str, Any]]:
        """Returns the bins that hold images, for JSON."""
        edges = np.linspace(0, 1, len(self.images) + 1)
        return [
            {
                "above": float(edges[index]),
                "to": float(edges[index + 1]),
                "images": int(self.images[index]),
                "confidence": float(self.confidence[index]),
                "accuracy": float(self.accuracy[index]),
            }
            for index in np.flatnonzero(self.images).tolist()
        ]


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Returns the temperature that minimises the cross-entropy (section 4.2 of the paper).

    The logarithms of the probabilities are logits, up to a constant of each image, which softmax
    ignores.

    Args:
        probabilities: `(images, classes)`.
        labels: True classes, int64 `(images,)`.

    Returns:
        A number from 0.05 to 20; above 1 if the classifier is too sure of itself.
    """
    low, high = 1 / _MOST, 1 / _LEAST
    inverse = 1.0
    for _ in range(_STEPS):  # Newton's method for a convex function, kept inside an interval
        slope, curvature = _derivatives(probabilities, labels, inverse)
        if abs(slope) < _FLAT:
            break
        if slope > 0:
            high = inverse
        else:
            low = inverse
        following = inverse - slope / curvature if curvature > 0 else low - 1
        if not low < following < high:
            following = (low + high) / 2
        if abs(following - inverse) <= 1e-7 * inverse:
            break
        inverse = following
    return 1 / inverse


def _derivatives(
    probabilities: np.ndarray, labels: np.ndarray, inverse: float
) -> tuple[float, float]:
    """Returns both derivatives of the cross-entropy by the inverse of the temperature."""
    slope = curvature = 0.0
    for rows, logits in _logits(probabilities):
        fractions = _softmax(inverse * logits)
        mean = np.sum(fractions * logits, axis=1)
        slope += float(np.sum(mean - logits[np.arange(len(logits)), labels[rows]]))
        curvature += float(np.sum(fractions * (logits - mean[:, np.newaxis]) ** 2))
    return slope / len(labels), curvature / len(labels)


def with_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Returns the probabilities whose logits are divided by a temperature, float32."""
    parts = [_softmax(logits / temperature) for _, logits in _logits(probabilities)]
    return np.concatenate([np.zeros((0, probabilities.shape[1])), *parts]).astype(np.float32)


def _logits(probabilities: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    for start in range(0, len(probabilities), _ROWS):
        rows = slice(start, start + _ROWS)
        yield rows, np.log(np.maximum(probabilities[rows].astype(np.float64), _TINY))


def _softmax(logits: np.ndarray) -> np.ndarray:
    found = np.exp(logits - logits.max(axis=1, keepdims=True))
    return found / found.sum(axis=1, keepdims=True)
