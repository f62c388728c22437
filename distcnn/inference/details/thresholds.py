"""Thresholds above which an image is said to have a label, in place of 0.5."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from distcnn.inference.label_evaluation import LabelEvaluation, precision_recall_f1


@dataclass(frozen=True)
class Thresholds:
    """The threshold of each label, and what it changes.

    Attributes:
        chosen_on: Split that the thresholds were chosen on.
        values: float64 `(labels,)`.
        rows: Scores of each label with its threshold.
        f1: Mean F1 of the labels.
        exact: Fraction of the images whose labels are all right.
    """

    chosen_on: str
    values: np.ndarray
    rows: list[dict[str, Any]]
    f1: float
    exact: float

    @classmethod
    def of(cls, chosen_on: str, values: np.ndarray, result: LabelEvaluation) -> "Thresholds":
        """Applies thresholds.

        Args:
            chosen_on: Split that they were chosen on.
            values: One for each label, float64 `(labels,)`.
            result: What they are applied to.
        """
        has = result.probabilities > values
        precision, recall, f1 = precision_recall_f1(result.labels, has)
        columns = zip(result.classes, values, precision, recall, f1, strict=True)
        rows = [
            dict(zip(("class", "threshold", "precision", "recall", "f1"), row, strict=True))
            for row in ((name, *map(float, numbers)) for name, *numbers in columns)
        ]
        exact = float(np.mean((has == result.labels).all(axis=1)))
        return cls(chosen_on, values, rows, float(np.mean(f1)), exact)

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        return {
            "chosen_on": self.chosen_on,
            "f1": self.f1,
            "exact": self.exact,
            "classes": self.rows,
        }


def best_thresholds(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray:
    """Returns the threshold of each label that gives the largest F1.

    Args:
        labels: bool `(images, labels)`.
        probabilities: float32 of the same shape.

    Returns:
        float64 `(labels,)`, halfway between two probabilities; of equally good ones the nearest to
        0.5. For a label that no image has: 0.5.
    """
    columns: Sequence[int] = range(labels.shape[1])
    return np.array([_best(labels[:, each], probabilities[:, each]) for each in columns])


def _best(truth: np.ndarray, probabilities: np.ndarray) -> float:
    if not truth.any():
        return 0.5
    order = np.argsort(-probabilities, kind="stable")
    values = probabilities[order].astype(np.float64)
    found = np.cumsum(truth[order])
    f1 = 2 * found / (np.arange(1, len(order) + 1) + truth.sum())
    following = np.append(values[1:], 0.0)
    possible = values > following  # a threshold cannot divide images of one probability
    if not possible.any():
        return 0.5
    middle = (values + following) / 2
    good = np.flatnonzero(possible & (f1 >= f1[possible].max() - 1e-12))
    return float(middle[good[np.argmin(np.abs(middle[good] - 0.5))]])
