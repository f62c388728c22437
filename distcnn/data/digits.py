"""The handwritten digits bundled with scikit-learn: no download, trains in seconds."""

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.split import Source

_TEST_IMAGES = 360


def open_digits(config: DataConfig) -> Source:
    """Opens the UCI optical digits test set (Alpaydin and Kaynak 1998) from scikit-learn.

    Returns:
        1,437 training and 360 test images of shape `(8, 8, 1)`, in a fixed stratified split.
    """
    digits = load_digits()
    images = np.rint(digits.images * (255 / 16)).astype(np.uint8)[..., np.newaxis]
    labels = digits.target.astype(np.int64)
    train, test = train_test_split(
        np.arange(len(labels)), test_size=_TEST_IMAGES, random_state=0, stratify=labels
    )
    train.sort()
    test.sort()
    return Source(
        name=config.name,
        classes=tuple(str(name) for name in digits.target_names),
        train=ArraySplit(images[train], labels[train]),
        validation=None,
        test=ArraySplit(images[test], labels[test]),
        image_shape=(8, 8, 1),
    )
