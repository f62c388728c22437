"""Evaluation of a classifier of images that may have several labels."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_TINY = 1e-7  # as Keras bounds the probabilities of binary cross-entropy


@dataclass(frozen=True)
class LabelEvaluation:
    """The result of a classifier of several labels on a set of images.

    An image is said to have a label if its probability is above 0.5.

    Attributes:
        labels: The labels that each image has, bool of shape `(images, labels)`.
        probabilities: float32 of shape `(images, labels)`.
        classes: Names of the labels.
    """

    labels: np.ndarray
    probabilities: np.ndarray
    classes: tuple[str, ...]

    @property
    def loss(self) -> float:
        """Mean binary cross-entropy in nats."""
        fractions = np.clip(self.probabilities.astype(np.float64), _TINY, 1 - _TINY)
        return float(-np.mean(np.log(np.where(self.labels, fractions, 1 - fractions))))

    @property
    def exact(self) -> float:
        """Fraction of the images whose labels are all right."""
        return float(np.mean((self.labels == (self.probabilities > 0.5)).all(axis=1)))

    def by_class(self) -> list[dict[str, Any]]:
        """Returns average precision, precision, recall, F1 and the number of images of each label.

        The average precision of a label is None if no image has it, and NaN if the model returns
        NaN for it.
        """
        from sklearn.metrics import average_precision_score  # imported late: it takes a second

        precision, recall, f1 = precision_recall_f1(self.labels, self.probabilities > 0.5)
        rows = []
        for index, name in enumerate(self.classes):
            truth, values = self.labels[:, index], self.probabilities[:, index]
            average = None
            if truth.any():  # scikit-learn raises an error for NaN
                finite = np.isfinite(values).all()
                average = float(average_precision_score(truth, values)) if finite else math.nan
            rows.append(
                {
                    "class": name,
                    "average_precision": average,
                    "precision": float(precision[index]),
                    "recall": float(recall[index]),
                    "f1": float(f1[index]),
                    "images": int(np.count_nonzero(truth)),
                }
            )
        return rows

    def results(self) -> dict[str, Any]:
        """Returns loss, mAP (over the labels that occur), macro F1 and scores by label, by name."""
        rows = self.by_class()
        found = [row["average_precision"] for row in rows if row["average_precision"] is not None]
        return {
            "loss": self.loss,
            "mAP": float(np.mean(found)) if found else None,
            "f1": float(np.mean([row["f1"] for row in rows])),
            "exact": self.exact,
            "classes": rows,
        }


def precision_recall_f1(
    truth: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns precision, recall and F1 of each label; 0 where a fraction has no denominator.

    Scikit-learn takes a single column for a binary problem, and scores having no label too.

    Args:
        truth: The labels that each image has, bool of shape `(images, labels)`.
        found: The labels that it is said to have, the same shape.

    Returns:
        Three float64 arrays of shape `(labels,)`.
    """
    right, has, said = (np.count_nonzero(each, axis=0) for each in (truth & found, truth, found))
    whole = (said, has, (said + has) / 2)
    precision, recall, f1 = (right / np.where(each == 0, 1, each) for each in whole)
    return precision, recall, f1
