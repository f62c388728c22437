"""Compares a run with another one on the same images."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.errors import DataError, UsageError
from distcnn.inference.details.comparison import Comparison
from distcnn.inference.evaluation import (
    AnyEvaluation,
    Evaluation,
    Evaluator,
    SplitName,
    require_same_task,
)
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.runtime.text import printable


@dataclass(frozen=True)
class Pairing:
    """A classifier and the one that it is compared with.

    Attributes:
        other: Model file of the other one.
        accuracy: Fraction of the images that the other one classifies right.
        counts: The comparison; first comes the classifier itself.
    """

    other: Path
    accuracy: float
    counts: Comparison

    def as_dict(self) -> dict[str, Any]:
        """Returns all of it for JSON."""
        return {"model": str(self.other), "accuracy": self.accuracy, **self.counts.as_dict()}

    def lines(self) -> list[str]:
        """Returns what to print."""
        low, high = self.counts.interval
        return [
            f"against {self.other}: accuracy {self.accuracy:.4f}, difference "
            f"{self.counts.difference:+.4f} (95 % interval {low:+.4f} to {high:+.4f})",
            f"only this one right {self.counts.only_first}, only the other "
            f"{self.counts.only_second}, both {self.counts.both}, neither {self.counts.neither}: "
            f"p = {self.counts.p_value:.3g} (McNemar, exact)",
        ]


def require_comparable(first: Evaluator, second: Evaluator, split: SplitName) -> None:
    """Checks that two classifiers answer the same question on the same images.

    Raises:
        UsageError: If they return numbers.
        DataError: If their classes or images differ.
    """
    if first.source.task == "regression":
        raise UsageError(
            f"--against: {first.classifier.path} was trained for numbers, but McNemar's test "
            "compares classes; expected runs with classes; compare the mae of both"
        )
    require_same_task(second.source.task, first.source.task)
    ours, theirs = first.source.classes, second.source.classes
    if ours != theirs:
        differing = sorted(set(ours) ^ set(theirs)) or list(theirs)
        raise DataError(
            f"--against: {second.classifier.path} has {len(theirs)} classes, "
            f"{first.classifier.path} has {len(ours)}, and they differ in "
            f"{printable(', '.join(differing[:10]))}; expected the same classes in the same order"
        )
    mine, other = first.split(split), second.split(split)
    if (
        len(mine) != len(other)
        or _stored_hash(first, split) != _stored_hash(second, split)
        or list(mine.names()) != list(other.names())
        or not np.array_equal(mine.labels, other.labels)
    ):
        raise DataError(
            f"--against: {second.classifier.path} has other {split} images ({len(other)}) than "
            f"{first.classifier.path} ({len(mine)}), by content, name, label or order; expected "
            "the same; name the images of both by --data.name and --data.dir"
        )


def _stored_hash(evaluator: Evaluator, split: SplitName) -> list[str]:
    source = evaluator.source
    stored = [source.test] if split == "test" else [source.train, source.validation]
    return ["" if each is None else each.content_hash() for each in stored]


def pair(first: Evaluator, result: AnyEvaluation, second: Evaluator, split: SplitName) -> Pairing:
    """Compares two classifiers on the same images.

    Args:
        first: The classifier.
        result: Its result.
        second: The one to compare it with.
        split: Which images.

    Raises:
        DataError: If not the same images could be decoded.
    """
    theirs = second.evaluate(split)
    if not np.array_equal(first.evaluated(split), second.evaluated(split)):
        raise DataError(
            f"--against: other {split} images could be decoded than for "
            f"{first.classifier.path}; expected the same; remove those that cannot"
        )
    right = _right(theirs)
    return Pairing(
        second.classifier.path, float(np.mean(right)), Comparison.of(_right(result), right)
    )


def _right(result: AnyEvaluation) -> np.ndarray:
    """Returns which images are classified right, bool; all labels of an image count together."""
    assert not isinstance(result, NumberEvaluation)
    if isinstance(result, Evaluation):
        return np.asarray(result.predictions == result.labels)
    return np.asarray((result.labels == (result.probabilities > 0.5)).all(axis=1))
