"""Evaluation of a classifier of images that may have several labels."""

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

        The average precision of a label that no image has is None.
        """
        from sklearn.metrics import (  # imported late, since it takes a second
            average_precision_score,
            precision_recall_fscore_support,
        )

        scores = precision_recall_fscore_support(
            self.labels, self.probabilities > 0.5, average=None, zero_division=0.0
        )
        rows = []
        for index, name in enumerate(self.classes):
            truth = self.labels[:, index]
            average = None
            if truth.any():
                average = float(average_precision_score(truth, self.probabilities[:, index]))
            precision, recall, f1, images = (each[index] for each in scores)
            rows.append(
                {
                    "class": name,
                    "average_precision": average,
                    "precision": float(precision),
                    "recall": float(recall),
                    "f1": float(f1),
                    "images": int(images),
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
