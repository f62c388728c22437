"""The images of a run: opened, split, and brought to the model's size."""

import logging
from dataclasses import dataclass

from distcnn.config import DataConfig
from distcnn.data.caching import load
from distcnn.data.selection import split_train_validation
from distcnn.data.split import Shape, Source, Split
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


def offered_shape(config: DataConfig, source: Source) -> Shape:
    """Returns the image shape that is offered to a model: as asked for, as stored, or 32x32x3."""
    if config.image_size is not None:
        channels = source.image_shape[2] if source.image_shape else 3
        return (config.image_size, config.image_size, channels)
    if source.image_shape is None or config.name == "digits":
        return DEFAULT_SHAPE
    return source.image_shape


def load_dataset(config: DataConfig, source: Source, image_shape: Shape, seed: int) -> Dataset:
    """Splits an opened source and brings its images to one size.

    Args:
        config: Says what to validate on and how to keep images.
        source: The opened data set.
        image_shape: `(height, width, channels)` that the model takes.
        seed: Seed of the split.

    Raises:
        DataError: If there are no training images, or too few to split.
    """
    if source.train is None:
        raise DataError(f"{config.dir} holds no training images; expected {config.dir}/train")
    train = _load(config, source, source.train, "train", image_shape)
    test = _load(config, source, source.test, "test", image_shape) if source.test else None
    validation: Split | None = None
    if config.validation == "test":
        validation = test
        if test is None:
            log.warning("warning: there are no test images to validate on, so nothing is validated")
    elif config.validation == "split" and source.validation is not None:
        validation = _load(config, source, source.validation, "validation", image_shape)
    elif config.validation == "split":
        train, validation = split_train_validation(train, config.validation_split, seed)
    return Dataset(train, validation, test, source.classes)


def _load(config: DataConfig, source: Source, split: Split, part: str, image_shape: Shape) -> Split:
    return load(split, image_shape, config, classes=source.classes, part=part)
