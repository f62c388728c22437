"""Loads the images of a run, split and resized for the model."""

import logging
from dataclasses import dataclass
from typing import Literal

from distcnn.config import DataConfig
from distcnn.data.caching import load
from distcnn.data.sources import data_set_of
from distcnn.data.split import Shape, Source, Split
from distcnn.data.validation_split import split_train_validation
from distcnn.errors import DataError

log = logging.getLogger("distcnn")

DEFAULT_SHAPE: Shape = (32, 32, 3)
"""Input shape of models that accept any, used if the images do not determine one."""


@dataclass(frozen=True)
class Dataset:
    """The training, validation and test splits of a run, all of one image shape.

    Attributes:
        train: Training images.
        validation: Images to validate on after every epoch, or None.
        test: Images to test on once at the end, or None.
        classes: Class names; the position is the label.
        content_hash: Changes whenever images, labels or classes of the data set do.
    """

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]
    content_hash: str


def default_image_shape(config: DataConfig, source: Source) -> Shape:
    """Returns the image shape to offer to a model: as configured, as stored, or a default."""
    if config.image_size is not None:
        channels = source.image_shape[2] if source.image_shape else 3
        return (config.image_size, config.image_size, channels)
    return data_set_of(config.name).default_shape or source.image_shape or DEFAULT_SHAPE


def load_dataset(
    config: DataConfig, source: Source, image_shape: Shape, seed: int, *, processes: int = 1
) -> Dataset:
    """Splits an opened source and resizes its images.

    Args:
        config: Selects the validation images and how to cache.
        source: The opened data set.
        image_shape: `(height, width, channels)` that the model takes.
        seed: Seed of the split.
        processes: Processes on this host that each load the images.

    Raises:
        DataError: If there are no training images, too few to split, or fewer than two classes.
    """
    _require_classes(config, source)
    if source.train is None:
        raise DataError(f"{config.dir} contains no training images; expected {config.dir}/train")

    def loaded(split: Split) -> Split:
        return load(split, image_shape, config, processes)

    train = loaded(source.train)
    test = loaded(source.test) if source.test else None
    validation: Split | None = None
    if config.validation == "test":
        validation = test
        if test is None:
            log.warning("warning: there are no test images to validate on; skipping validation")
    elif config.validation == "split" and source.validation is not None:
        validation = loaded(source.validation)
    elif config.validation == "split":
        train, validation = split_train_validation(train, config.validation_split, seed)
    return Dataset(train, validation, test, source.classes, source.content_hash())


def load_split(
    config: DataConfig,
    source: Source,
    image_shape: Shape,
    seed: int,
    name: Literal["train", "validation", "test"],
) -> Split:
    """Loads one split of the data set, for evaluation.

    Raises:
        DataError: If the data set has no such split, or fewer than two classes.
    """
    _require_classes(config, source)
    if name == "test":
        split = load(source.test, image_shape, config) if source.test else None
    else:
        dataset = load_dataset(config, source, image_shape, seed)
        split = dataset.train if name == "train" else dataset.validation
    if split is None:
        raise DataError(
            f"{config.dir or config.name} has no {name} images; choose another --split: "
            "train, validation or test"
        )
    return split


def _require_classes(config: DataConfig, source: Source) -> None:
    if len(source.classes) < 2:
        raise DataError(
            f"{config.dir or config.name} has {len(source.classes)} class; expected at least 2"
        )
