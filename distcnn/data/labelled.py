"""Images named by a file of paths and labels."""

import numpy as np

from distcnn.config import DataConfig
from distcnn.data.cache_location import cache_folder
from distcnn.data.folder import FolderSplit
from distcnn.data.label_table import LabelTable, read_label_table
from distcnn.data.split import Source
from distcnn.errors import DataError
from distcnn.runtime.text import printable

_SPLITS = ("train", "val", "test")


def open_labels(config: DataConfig) -> Source:
    """Opens the images of the file `data.labels`.

    Args:
        config: `labels` names the file; `task` and the columns say how to read it; `on_error` sets
            what to do with rows that cannot be used.

    Returns:
        A source with image_shape None. Images of a split keep the order of the file.

    Raises:
        DataError: The file or rows of it cannot be used, or a class has no training images.
    """
    table = read_label_table(config, cache_folder().parent)
    splits: dict[str, FolderSplit] = {}
    for name in _SPLITS:
        chosen = np.arange(len(table.labels))
        if table.splits is not None:
            chosen = np.flatnonzero(table.splits == name)
        elif name != "train":
            continue
        if len(chosen):
            files = table.files.take(chosen)
            splits[name] = FolderSplit(files, table.labels[chosen], config.verify)
    _require_classes_in_training(table, splits, str(config.labels))
    return Source(
        name="labels",
        classes=table.classes,
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        image_shape=None,
        task=table.task,
        reading=table.reading,
        is_undivided=table.splits is None,
    )


def _require_classes_in_training(
    table: LabelTable, splits: dict[str, FolderSplit], file: str
) -> None:
    if "train" not in splits or table.task == "regression":
        return
    labels = splits["train"].labels
    counts = labels.sum(axis=0) if labels.ndim == 2 else np.bincount(labels, minlength=1)
    counts = np.pad(counts, (0, len(table.classes) - len(counts)))
    if not counts.all():
        missing = [printable(table.classes[index]) for index in np.flatnonzero(counts == 0)[:5]]
        raise DataError(
            f"{printable(file)}: no training image has the label {', '.join(missing)}, but others "
            "have; remove these, or add training images"
        )
