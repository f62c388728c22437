"""The table of data sets, and everything that depends on which of them is chosen.

To add one, write a function that opens it and add it to `SOURCES`. Nothing outside this module
compares the name of a data set with a string, and nothing here imports TensorFlow before a data set
is opened.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from distcnn.config import DataConfig, TrainConfig
from distcnn.config.lookup import import_object, require_known
from distcnn.errors import UsageError

if TYPE_CHECKING:
    from distcnn.data.split import Source

Open = Callable[[DataConfig], "Source"]
"""Opens a data set."""


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set that can be chosen by name.

    Attributes:
        open: Opens it, or the import path of the function that does.
        reads_dir: Whether it reads `data.dir`.
        needs_download: Whether the images are downloaded if `data.dir` is not set.
        default_shape: Image shape `(height, width, channels)` to offer to a model that accepts any,
            or None for the stored shape.
    """

    open: Open | str
    reads_dir: Literal["required", "optional", "never"] = "optional"
    needs_download: bool = False
    default_shape: tuple[int, int, int] | None = None


SOURCES: dict[str, DataSet | Open | str] = {
    "cifar10": DataSet(open="distcnn.data.cifar:open_cifar", needs_download=True),
    "cifar100": DataSet(open="distcnn.data.cifar:open_cifar", needs_download=True),
    "digits": DataSet(
        open="distcnn.data.digits:open_digits", reads_dir="never", default_shape=(32, 32, 3)
    ),
    "folder": DataSet(open="distcnn.data.folder:open_folder", reads_dir="required"),
    "labels": DataSet(open="distcnn.data.labelled:open_labels"),
    "tfrecord": DataSet(open="distcnn.data.tfrecord:open_tfrecord", reads_dir="required"),
    "tfds": DataSet(open="distcnn.data.prepared:open_prepared", reads_dir="required"),
    "synthetic": DataSet(open="distcnn.data.synthetic:open_synthetic", reads_dir="never"),
}
"""The data sets by their name in the configuration. A function from `DataConfig` to `Source`, or
its import path, stands for a `DataSet` with the defaults."""


def data_set_of(name: str) -> DataSet:
    """Returns a data set by its name.

    Raises:
        UsageError: If there is no data set of that name.
    """
    require_known("data.name", name, SOURCES)
    entry = SOURCES[name]
    return entry if isinstance(entry, DataSet) else DataSet(open=entry)


def require_fitting_dir(config: DataConfig) -> None:
    """Checks that `data.dir` is set if the data set reads it, and only then.

    Raises:
        UsageError: If it is missing or not read, or there is no data set of that name.
    """
    data_set = data_set_of(config.source)
    if data_set.reads_dir == "required" and config.dir is None:
        raise UsageError(
            f"data.name {config.name} needs --data.dir DIR, the folder that holds the images"
        )
    if data_set.reads_dir == "never" and config.dir is not None:
        raise UsageError(
            f"data.dir is {config.dir}, but data.name {config.name} reads no folder; did you mean "
            "--data.name folder?"
        )


def open_source(config: DataConfig, seed: int = TrainConfig.seed) -> "Source":
    """Opens the data set `config.source`.

    Args:
        config: The data section.
        seed: Seed of the test images, if they are drawn from all images.

    Returns:
        The source; images are read on demand, labels are int64.

    Raises:
        UsageError: If there is no data set of that name, or `config.dir` does not fit it.
        DataError: If the data is missing or damaged, or too small for test images.
    """
    require_fitting_dir(config)
    function = data_set_of(config.source).open
    if isinstance(function, str):
        function = import_object(function, "data.name")
    from distcnn.data.class_subset import with_chosen_classes
    from distcnn.data.remote import with_local_files
    from distcnn.data.test_split import with_test_images

    config = with_local_files(config)
    return with_test_images(with_chosen_classes(function(config), config), config, seed)
