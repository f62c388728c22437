"""The data sets by name. To add one, write a function that opens it and register it here."""

from typing import TYPE_CHECKING, Any

from distcnn.config import DataConfig
from distcnn.config.lookup import look_up

if TYPE_CHECKING:
    from distcnn.data.split import Source

SOURCES: dict[str, Any] = {
    "cifar10": "distcnn.data.cifar:open_cifar",
    "cifar100": "distcnn.data.cifar:open_cifar",
    "digits": "distcnn.data.digits:open_digits",
    "folder": "distcnn.data.folder:open_folder",
    "tfrecord": "distcnn.data.tfrecord:open_tfrecord",
    "synthetic": "distcnn.data.synthetic:open_synthetic",
}
"""Functions from a `DataConfig` to a `Source`, or their import paths."""


def open_source(config: DataConfig) -> "Source":
    """Opens the data set `config.name`.

    Returns:
        The source; images are read on demand, labels are int64.

    Raises:
        UsageError: If there is no data set of that name.
        DataError: If the data is missing or damaged.
    """
    source: Source = look_up("data.name", config.name, SOURCES)(config)
    return source
