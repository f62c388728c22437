"""Loads the images of a run, split and resized for the model."""

import logging
from dataclasses import dataclass
from typing import Literal

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.caching import load
from distcnn.data.framing import evaluation_framing, training_framing
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
        task: What the labels are.
        reading: How labels were read, for the log; empty where there is nothing to say.
        division: How the images were divided, for the log; empty if the data set says so itself.
    """

    train: Split
    validation: Split | None
    test: Split | None
    classes: tuple[str, ...]
    content_hash: str
    task: Task = "classification"
    reading: str = ""
    division: str = ""


def default_image_shape(config: DataConfig, source: Source) -> Shape:
    """Returns the image shape to offer to a model: as configured, as stored, or a default."""
    if config.image_size is not None:
        channels = source.image_shape[2] if source.image_shape else 3
        return (config.image_size, config.image_size, channels)
    return data_set_of(config.source).default_shape or source.image_shape or DEFAULT_SHAPE


def load_dataset(
    config: DataConfig,
    source: Source,
    image_shape: Shape,
    seed: int,
    *,
    processes: int = 1,
    evaluated: bool = False,
) -> Dataset:
    """Splits an opened source and resizes its images.

    Args:
        config: Selects the validation images and how to cache.
        source: The opened data set.
        image_shape: `(height, width, channels)` that the model takes.
        seed: Seed of the split.
        processes: Processes on this host that each load the images.
        evaluated: Whether the training images are framed as for evaluation.

    Raises:
        DataError: If there are no training images, too few to split, or fewer than two classes.
    """
    _require_classes(config, source)
    if source.train is None:
        where = config.place
        raise DataError(
            f"{where} contains no training images"
            + (f": {source.division}" if source.division else f"; expected {where}/train")
        )

    for_evaluation = evaluation_framing(config)
    for_training = for_evaluation if evaluated else training_framing(config)

    def loaded(split: Split) -> Split:
        return load(split, image_shape, config, processes, for_evaluation)

    def loaded_to_train(split: Split) -> Split:
        decoded = not config.augment.random_resized_crop
        return load(split, image_shape, config, processes, for_training, decoded=decoded)

    train = source.train
    test = loaded(source.test) if source.test else None
    validation: Split | None = None
    if config.validation == "test":
        validation = test
        if test is None:
            log.warning("warning: there are no test images to validate on; skipping validation")
    elif config.validation == "split" and source.validation is not None:
        validation = loaded(source.validation)
    elif config.validation == "split" and training_framing(config) != for_evaluation:
        # They cannot share a cache.
        train, held_out = split_train_validation(train, config.validation_split, seed)
        validation = loaded(held_out)
    elif config.validation == "split":
        train = loaded_to_train(train)
        train, validation = split_train_validation(train, config.validation_split, seed)
        return _dataset(config, source, train, validation, test)
    train = loaded_to_train(train)
    return _dataset(config, source, train, validation, test)


def _dataset(
    config: DataConfig, source: Source, train: Split, validation: Split | None, test: Split | None
) -> Dataset:
    division = source.division
    if division and validation is not None and source.validation is None and validation is not test:
        division += f"; {config.validation_split:g} of the rest for validation"
    return Dataset(
        train,
        validation,
        test,
        source.classes,
        source.content_hash(),
        source.task,
        source.reading,
        division,
    )


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
        framing = evaluation_framing(config)
        split = load(source.test, image_shape, config, 1, framing) if source.test else None
    else:
        dataset = load_dataset(config, source, image_shape, seed, evaluated=True)
        split = dataset.train if name == "train" else dataset.validation
    if split is None:
        raise DataError(
            f"{config.place} has no {name} images; choose another --split: "
            "train, validation or test"
        )
    return split


def _require_classes(config: DataConfig, source: Source) -> None:
    if source.task == "classification" and len(source.classes) < 2:
        raise DataError(f"{config.place} has {len(source.classes)} class; expected at least 2")
