"""The images of a run: opened, split, and brought to the model's size."""

import logging
from dataclasses import dataclass
from typing import Literal

from distcnn.config import DataConfig
from distcnn.data.caching import load
from distcnn.data.split import Shape, Source, Split
from distcnn.data.validation_split import split_train_validation
from distcnn.errors import DataError

log = logging.getLogger("distcnn")

DEFAULT_SHAPE: Shape = (32, 32, 3)
"""Input of a model that leaves the choice open, for images that have no one size of their own."""


@dataclass(frozen=True)
class Dataset:
    """Training, validation and test images of one size, kept apart.

    Attributes:
        train: Training images.
        validation: Images to validate on after every epoch, or None.
        test: Images to test on once at the end, or None.
        classes: Class names; the position is the label.
    """

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]


def default_image_shape(config: DataConfig, source: Source) -> Shape:
    """Returns the image shape that is offered to a model: as asked for, as stored, or 32x32x3."""
    if config.image_size is not None:
        channels = source.image_shape[2] if source.image_shape else 3
        return (config.image_size, config.image_size, channels)
    if source.image_shape is None or config.name == "digits":
        return DEFAULT_SHAPE
    return source.image_shape


def load_dataset(
    config: DataConfig, source: Source, image_shape: Shape, seed: int, *, processes: int = 1
) -> Dataset:
    """Splits an opened source and brings its images to one size.

    Args:
        config: Says what to validate on and how to keep images.
        source: The opened data set.
        image_shape: `(height, width, channels)` that the model takes.
        seed: Seed of the split.
        processes: Processes of this host that each load the images.

    Raises:
        DataError: If there are no training images, or too few to split.
    """
    if source.train is None:
        raise DataError(f"{config.dir} holds no training images; expected {config.dir}/train")

    def loaded(split: Split) -> Split:
        return load(split, image_shape, config, processes)

    train = loaded(source.train)
    test = loaded(source.test) if source.test else None
    validation: Split | None = None
    if config.validation == "test":
        validation = test
        if test is None:
            log.warning("warning: there are no test images to validate on, so nothing is validated")
    elif config.validation == "split" and source.validation is not None:
        validation = loaded(source.validation)
    elif config.validation == "split":
        train, validation = split_train_validation(train, config.validation_split, seed)
    return Dataset(train, validation, test, source.classes)


def load_split(
    config: DataConfig,
    source: Source,
    image_shape: Shape,
    seed: int,
    name: Literal["train", "validation", "test"],
) -> Split:
    """Returns one of the splits that `load_dataset` makes, for evaluation.

    Raises:
        DataError: If the data set has no such split.
    """
    if name == "test":
        split = load(source.test, image_shape, config) if source.test else None
    else:
        dataset = load_dataset(config, source, image_shape, seed)
        split = dataset.train if name == "train" else dataset.validation
    if split is None:
        raise DataError(
            f"{config.dir or config.name} has no {name} images; choose another --split out of "
            "train, validation, test"
        )
    return split
