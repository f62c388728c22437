"""The worst mistakes of a classifier by class, with what misled it."""

import dataclasses
import itertools
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.errors import DistcnnError
from distcnn.inference.details.gradcam import GradCam
from distcnn.inference.evaluation import AnyEvaluation, Evaluation, Evaluator, SplitName
from distcnn.inference.label_evaluation import LabelEvaluation
from distcnn.inference.number_evaluation import NumberEvaluation

PER_CLASS, MOST_CLASSES = 4, 20
"""How many mistakes of how many classes are shown; the classes with the most mistakes."""


@dataclass(frozen=True)
class Mistake:
    """An image that is classified wrong.

    Attributes:
        group: Index of the true class; of the label that is wrong; or of the number.
        label: Its name.
        row: Position in the evaluation.
        output: The output that is wrong: its index.
        said: What the classifier says, in words.
        size: How wrong it is: the probability of what it says, or the error of a number.
        name: Name of the image in its data set.
        image: Its pixels, uint8 `(height, width, channels)`.
        heat: Where in the image the output is found, float32 `(height, width)` in [0, 1]; None if
            that is not known.
    """

    group: int
    label: str
    row: int
    output: int
    said: str
    size: float
    name: str = ""
    image: np.ndarray | None = None
    heat: np.ndarray | None = None

    def as_dict(self) -> dict[str, Any]:
        """Returns it for JSON, without pixels."""
        return {"class": self.label, "image": self.name, "said": self.said, "size": self.size}


@dataclass(frozen=True)
class Mistakes:
    """The worst mistakes.

    Attributes:
        worst: The mistakes in the order of their groups; the worst of each group first.
        counts: Number of mistakes in each group, also of those that are not shown.
        note: Why there is no Grad-CAM; empty if there is.
    """

    worst: list[Mistake]
    counts: list[int]
    note: str = ""

    def groups(self) -> list[tuple[str, int, list[Mistake]]]:
        """Returns each group with its name, its number of mistakes and the worst of them."""
        grouped = itertools.groupby(self.worst, lambda each: (each.group, each.label))
        return [(label, self.counts[group], list(each)) for (group, label), each in grouped]


def find_mistakes(evaluator: Evaluator, split: SplitName, result: AnyEvaluation) -> Mistakes:
    """Returns the worst mistakes with their pixels and, where it can be, Grad-CAM.

    Args:
        evaluator: What the result is from.
        split: Which images.
        result: The result.
    """
    found = worst_by_class(result)
    if not found.worst:
        return found
    indices = evaluator.evaluated(split)[[each.row for each in found.worst]]
    images = evaluator.split(split).gather(tf.constant(indices, tf.int64)).numpy()
    stored = evaluator.source.test if split == "test" else None  # decoded images have no names
    names = (evaluator.split(split) if stored is None else stored).names()
    note, heats = "", [None] * len(images)
    try:
        outputs = np.array([each.output for each in found.worst])
        heats = list(GradCam(evaluator.classifier).explain(images, outputs))
    except DistcnnError as error:
        note = str(error)
    worst = [
        dataclasses.replace(each, name=os.fsdecode(names[index]), image=image, heat=heat)
        for each, index, image, heat in zip(found.worst, indices, images, heats, strict=True)
    ]
    return Mistakes(worst, found.counts, note)


def worst_by_class(result: AnyEvaluation) -> Mistakes:
    """Returns the worst mistakes of the classes with the most, without their pixels."""
    if isinstance(result, Evaluation):
        predicted, sure = result.predictions, result.probabilities.max(axis=1)
        groups = [_of_class(result, index, predicted, sure) for index in range(len(result.classes))]
    elif isinstance(result, LabelEvaluation):
        groups = [_of_label(result, index) for index in range(len(result.classes))]
    else:
        groups = [_of_number(result, index) for index in range(len(result.classes))]
    counts = [count for count, _ in groups]
    shown = set(np.argsort([-count for count in counts], kind="stable")[:MOST_CLASSES].tolist())
    worst = [each for index in sorted(shown) for each in groups[index][1]]
    return Mistakes(worst, counts)


Group = tuple[int, list[Mistake]]
"""The number of mistakes, and the worst of them."""


def _of_class(result: Evaluation, index: int, predicted: np.ndarray, sure: np.ndarray) -> Group:
    wrong = np.flatnonzero((result.labels == index) & (predicted != index))
    worst = []
    for row in _largest(wrong, sure):
        said = int(predicted[row])
        text = f"as {result.classes[said]} {sure[row]:.0%}"
        worst.append(Mistake(index, result.classes[index], row, said, text, float(sure[row])))
    return len(wrong), worst


def _of_label(result: LabelEvaluation, index: int) -> Group:
    values, truth = result.probabilities[:, index], result.labels[:, index]
    wrong = np.flatnonzero((values > 0.5) != truth)
    size = np.where(values > 0.5, values, 1 - values)
    worst = []
    for row in _largest(wrong, size):
        text = f"{'missed' if truth[row] else 'not there'}, {values[row]:.0%}"
        worst.append(Mistake(index, result.classes[index], row, index, text, float(size[row])))
    return len(wrong), worst


def _of_number(result: NumberEvaluation, index: int) -> Group:
    values, truth = result.values[:, index], result.labels[:, index]
    errors = np.abs(values.astype(np.float64) - truth)
    worst = []
    for row in _largest(np.arange(len(errors)), errors):
        text = f"{values[row]:.4g}, not {truth[row]:.4g}"
        worst.append(Mistake(index, result.classes[index], row, index, text, float(errors[row])))
    return len(errors), worst


def _largest(rows: np.ndarray, size: np.ndarray) -> list[int]:
    largest: list[int] = rows[np.argsort(-size[rows], kind="stable")[:PER_CLASS]].tolist()
    return largest
