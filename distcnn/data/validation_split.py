"""Holds out training images for validation."""

import numpy as np

from distcnn.data.split import Split
from distcnn.data.strata import draw, strata_of
from distcnn.errors import DataError

_REMEDY = "add images, or use --data.validation test or none"


def split_train_validation(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Holds out the same fraction of each class or stratum; both parts keep the order of `train`.

    Args:
        train: The images to split.
        fraction: Fraction to hold out, 0 < fraction < 1; rounded up to whole images.
        seed: Seed of the selection.

    Returns:
        The images to train on and the images held out.

    Raises:
        DataError: A class, or the whole split, is too small for both parts to hold every class.
    """
    if train.labels.ndim > 1:
        return _split_rows(train, fraction, seed)
    labels, counts = np.unique(train.labels, return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"the class with label {labels[counts.argmin()]} has 1 training image; a stratified "
            f"validation split needs at least 2 of each class; {_REMEDY}"
        )
    held_out = int(np.ceil(fraction * len(train)))
    if min(held_out, len(train) - held_out) < len(labels):
        raise DataError(
            f"data.validation_split {fraction:g} of {len(train)} training images is {held_out}; "
            f"expected at least one image of each of {len(labels)} classes in both parts; change "
            f"--data.validation_split, {_REMEDY}"
        )
    # Imported late, since it takes a second.
    from sklearn.model_selection import train_test_split

    kept, validation = train_test_split(
        np.arange(len(train)), test_size=held_out, random_state=seed, stratify=train.labels
    )
    return train.subset(np.sort(kept)), train.subset(np.sort(validation))


def _split_rows(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Holds out images that have several labels, or numbers."""
    names = [str(index).encode() for index in range(len(train))]
    validation = draw(strata_of(train.labels), names, fraction, seed)
    if not len(validation):
        raise DataError(
            f"data.validation_split {fraction:g} of {len(train)} training images is none; {_REMEDY}"
        )
    kept = np.setdiff1d(np.arange(len(train)), validation, assume_unique=True)
    return train.subset(kept), train.subset(validation)
