"""ROC and precision-recall curves, each class against the others."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_DRAWN = 25
"""With more classes, the curves of single classes are not kept, only their areas."""

_POINTS = 200


@dataclass(frozen=True)
class Curve:
    """A curve in the unit square.

    Attributes:
        x: False positive rate, or recall; float64 `(points,)`.
        y: True positive rate, or precision; the same shape.
    """

    x: np.ndarray
    y: np.ndarray

    def thinned(self, points: int = _POINTS) -> "Curve":
        """Returns a curve of at most so many points, evenly spread along its length."""
        if len(self.x) <= points:
            return self
        steps = np.hypot(np.diff(self.x), np.diff(self.y))
        length = np.concatenate([[0.0], np.cumsum(steps)])
        chosen = np.searchsorted(length, np.linspace(0, length[-1], points)).clip(max=len(steps))
        kept = np.unique([0, *chosen, len(steps)])
        return Curve(self.x[kept], self.y[kept])

    def as_dict(self) -> dict[str, list[float]]:
        """Returns the points for JSON."""
        return {"x": self.x.round(5).tolist(), "y": self.y.round(5).tolist()}


@dataclass(frozen=True)
class Ranking:
    """How well scores tell one class from the others.

    Attributes:
        name: The class, or `micro` for all decisions of all classes together.
        auc: Area under the ROC curve; None if all images are of the class, or none.
        average_precision: Area under the precision-recall curve as a step function; None if no
            image is of the class.
        roc: The ROC curve, or None.
        precision_recall: The precision-recall curve, or None.
    """

    name: str
    auc: float | None
    average_precision: float | None
    roc: Curve | None = None
    precision_recall: Curve | None = None

    @classmethod
    def of(cls, name: str, truth: np.ndarray, scores: np.ndarray, *, drawn: bool) -> "Ranking":
        """Ranks images by a score.

        Args:
            name: The class.
            truth: Whether an image is of the class, bool `(images,)`.
            scores: float32 `(images,)`.
            drawn: Whether to keep the curves.
        """
        from sklearn import metrics  # imported late, since it takes a second

        has_some, has_others = bool(truth.any()), not truth.all()
        auc = average = roc = precision_recall = None
        if has_some and has_others:
            auc = float(metrics.roc_auc_score(truth, scores))
            if drawn:
                false, true, _ = metrics.roc_curve(truth, scores)
                roc = Curve(false, true).thinned()
        if has_some:
            average = float(metrics.average_precision_score(truth, scores))
            if drawn:
                precision, recall, _ = metrics.precision_recall_curve(truth, scores)
                precision_recall = Curve(recall, precision).thinned()
        return cls(name, auc, average, roc, precision_recall)

    def as_dict(self) -> dict[str, Any]:
        """Returns areas and points for JSON."""
        found: dict[str, Any] = {
            "class": self.name,
            "auc": self.auc,
            "average_precision": self.average_precision,
        }
        if self.roc is not None:
            found["roc"] = self.roc.as_dict()
        if self.precision_recall is not None:
            found["precision_recall"] = self.precision_recall.as_dict()
        return found


@dataclass(frozen=True)
class Rankings:
    """The rankings of all classes.

    Attributes:
        by_class: One for each class.
        micro: All decisions of all classes together.
    """

    by_class: list[Ranking]
    micro: Ranking

    @classmethod
    def of(cls, truth: np.ndarray, scores: np.ndarray, classes: Sequence[str]) -> "Rankings":
        """Ranks images by each class.

        Args:
            truth: Whether an image is of a class, bool `(images, classes)`.
            scores: float32 of the same shape.
            classes: Class names.
        """
        drawn = len(classes) <= MOST_DRAWN
        by_class = [
            Ranking.of(name, truth[:, index], scores[:, index], drawn=drawn)
            for index, name in enumerate(classes)
        ]
        micro = Ranking.of("micro", truth.ravel(), scores.ravel(), drawn=True)
        return cls(by_class, micro)

    @property
    def macro_auc(self) -> float | None:
        """Mean area under the ROC curve of the classes that have one."""
        return _mean([each.auc for each in self.by_class])

    @property
    def macro_average_precision(self) -> float | None:
        """Mean average precision of the classes that have one."""
        return _mean([each.average_precision for each in self.by_class])

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        return {
            "macro_auc": self.macro_auc,
            "macro_average_precision": self.macro_average_precision,
            "micro": {key: value for key, value in self.micro.as_dict().items() if key != "class"},
            "classes": [each.as_dict() for each in self.by_class],
        }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
