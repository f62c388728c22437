"""Some of the classes of a data set."""

import dataclasses

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.recipe import nearest
from distcnn.data.split import Source, Split
from distcnn.errors import DataError, UsageError
from distcnn.runtime.text import printable


def with_chosen_classes(source: Source, config: DataConfig) -> Source:
    """Returns a source with the classes `data.classes` only, in the order of the data set.

    Images of other classes are left out. Where images have several labels, all images stay.

    Raises:
        UsageError: The labels are numbers.
        DataError: There is no class of a name, or no image is left.
    """
    names = config.chosen_classes
    if names is None:
        return source
    if source.task == "regression":
        raise UsageError("data.classes is set, but the labels are numbers; drop --data.classes")
    for name in names:
        if name not in source.classes:
            shown = ", ".join(map(printable, source.classes[:10]))
            raise DataError(
                f"data.classes has {printable(name)!r}, but the data has the classes {shown}"
                f"{', ...' if len(source.classes) > 10 else ''}{nearest(name, source.classes)}"
            )
    kept = np.array([source.classes.index(name) for name in source.classes if name in names])
    return dataclasses.replace(
        source,
        classes=tuple(source.classes[index] for index in kept),
        train=_restricted(source.train, kept, len(source.classes)),
        validation=_restricted(source.validation, kept, len(source.classes)),
        test=_restricted(source.test, kept, len(source.classes)),
    )


def _restricted(split: Split | None, kept: np.ndarray, classes: int) -> Split | None:
    if split is None:
        return None
    if split.labels.ndim == 2:
        part = split.subset(np.arange(len(split)))
        part.labels = split.labels[:, kept]
        return part
    chosen = np.flatnonzero(np.isin(split.labels, kept))
    if not len(chosen):
        return None
    number = np.full(classes, -1, np.int64)
    number[kept] = np.arange(len(kept))
    part = split.subset(chosen)
    part.labels = number[split.labels[chosen]]
    return part


def with_all_classes(source: Source, classes: tuple[str, ...]) -> Source:
    """Returns a source with the classes of a model, of which its images have only some.

    Args:
        source: The data set; each of its classes is one of `classes`.
        classes: Names of all classes in their order.
    """
    number = np.array([classes.index(name) for name in source.classes])

    def renumbered(split: Split | None) -> Split | None:
        if split is None:
            return None
        part = split.subset(np.arange(len(split)))
        part.labels = number[split.labels] if split.labels.ndim == 1 else spread(split.labels)
        return part

    def spread(labels: np.ndarray) -> np.ndarray:
        table = np.zeros((len(labels), len(classes)), bool)
        table[:, number] = labels
        return table

    return dataclasses.replace(
        source,
        classes=classes,
        train=renumbered(source.train),
        validation=renumbered(source.validation),
        test=renumbered(source.test),
    )
