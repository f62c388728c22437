"""The data sets by name."""

from collections.abc import Callable

from distcnn.config import DataConfig
from distcnn.data.cifar import open_cifar
from distcnn.data.digits import open_digits
from distcnn.data.folder import open_folder
from distcnn.data.split import Source
from distcnn.data.synthetic import open_synthetic
from distcnn.data.tfrecord import open_tfrecord

SOURCES: dict[str, Callable[[DataConfig], Source]] = {
    "cifar10": open_cifar,
    "cifar100": open_cifar,
    "digits": open_digits,
    "folder": open_folder,
    "tfrecord": open_tfrecord,
    "synthetic": open_synthetic,
}
"""The functions that open a data set."""


def open_source(config: DataConfig) -> Source:
    """Opens the data set `config.name`.

    Args:
        config: The data section of a run.

    Returns:
        The source; images are read when they are asked for, labels are int64.

    Raises:
        DataError: The data is missing or damaged.
    """
    return SOURCES[config.name](config)
