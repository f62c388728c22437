"""Which training images are held out for validation."""

import numpy as np
from sklearn.model_selection import train_test_split

from distcnn.data.split import Split
from distcnn.errors import DataError

_WAYS_OUT = "add images, or use --data.validation test or none"


def split_train_validation(train: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Holds out the same share of each class; both parts keep the order of `train`.

    Args:
        train: The images to split.
        fraction: Share to hold out, 0 < share < 1; rounded up to whole images.
        seed: Decides which images are held out.

    Returns:
        The images to train on, and those held out.

    Raises:
        DataError: There are too few images, of a class or in all, for a part to hold every class.
    """
    labels, counts = np.unique(train.labels, return_counts=True)
    if counts.min() < 2:
        raise DataError(
            f"the class with label {labels[counts.argmin()]} has 1 training image; a stratified "
            f"validation split needs at least 2 of each class; {_WAYS_OUT}"
        )
    held_out = int(np.ceil(fraction * len(train)))
    if min(held_out, len(train) - held_out) < len(labels):
        raise DataError(
            f"data.validation_split {fraction:g} of {len(train)} training images is {held_out}; "
            f"expected at least one image of each of {len(labels)} classes on either side; change "
            f"--data.validation_split, {_WAYS_OUT}"
        )
    kept, validation = train_test_split(
        np.arange(len(train)), test_size=held_out, random_state=seed, stratify=train.labels
    )
    return train.subset(np.sort(kept)), train.subset(np.sort(validation))
