"""Draws test images from data that has none of its own: a pure function of seed and file names."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.split import Source
from distcnn.data.strata import draw, strata_of
from distcnn.errors import DataError, UsageError

_STRATA: dict[Task, str] = {
    "classification": "each class",
    "multilabel": "each label",
    "regression": "each tenth of the numbers",
}


def with_test_images(source: Source, config: DataConfig, seed: int) -> Source:
    """Returns a source with test images drawn as `data.test_split` says, or the source itself.

    Args:
        source: The opened data set.
        config: The data section.
        seed: Seed of the draw.

    Raises:
        UsageError: The data has test images of its own, and others are asked for.
        DataError: A class is too small.
    """
    where = config.place
    fraction = config.test_fraction(is_undivided=source.is_undivided)
    if not fraction or source.train is None:
        return source
    if source.test is not None:
        raise UsageError(
            f"data.test_split is {fraction:g}, but {where} has test images of its own; pass "
            "--data.test_split 0"
        )
    if fraction == 1:
        division = "all images are test images (data.test_split 1)"
        return dataclasses.replace(source, train=None, test=source.train, division=division)
    labels = source.train.labels
    _require_two_of_each(labels, source.classes, where)
    test = draw(strata_of(labels), source.train.names(), fraction, seed)
    train = np.setdiff1d(np.arange(len(labels)), test, assume_unique=True)
    return dataclasses.replace(
        source,
        train=source.train.subset(train),
        test=source.train.subset(test),
        division=(
            f"{len(test):,} of {len(labels):,} images held out for testing, {fraction:.4g} of "
            f"{_STRATA[source.task]} (data.test_split), drawn by train.seed {seed} and the names "
            "of the files"
        ),
    )


def _require_two_of_each(labels: np.ndarray, classes: Sequence[str], where: str) -> None:
    if labels.ndim > 1:
        return
    counts = np.bincount(labels, minlength=len(classes))
    if counts.min() < 2:
        raise DataError(
            f"the class {classes[int(counts.argmin())]} of {where} has {counts.min()} image; test "
            "images drawn by data.test_split need at least 2 of each class; add images, or use "
            "--data.test_split 0"
        )
