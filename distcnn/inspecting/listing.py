"""Lists the labelled images of a folder or of a file of labels, without decoding any."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.cache_location import cache_folder
from distcnn.data.folder_index import FolderIndex
from distcnn.data.folder_layout import find_classes, find_labelled_images, find_splits
from distcnn.data.label_table import read_label_table
from distcnn.data.strata import draw, strata_of
from distcnn.runtime.text import valid_unicode

_NAMES = {"train": "train", "val": "validation", "test": "test"}


@dataclass(frozen=True)
class Listing:
    """Labelled images.

    Attributes:
        root: The folder or file that was inspected.
        task: What the labels are.
        classes: Names of the classes, or of the numbers.
        paths: The files, as the system encodes their names.
        labels: As in `distcnn.data.split.Split`.
        splits: The split of each image: train, validation or test.
        is_drawn: Whether the test images were drawn as training would draw them.
        reading: How labels were read; empty for folders.
    """

    root: Path
    task: Task
    classes: tuple[str, ...]
    paths: Sequence[bytes]
    labels: np.ndarray
    splits: np.ndarray
    is_drawn: bool
    reading: str = ""

    def label_of(self, index: int) -> str:
        """Returns the label of an image as text."""
        label = self.labels[index]
        if self.task == "classification":
            return self.classes[int(label)]
        if self.task == "regression":
            return ", ".join(f"{number:g}" for number in label)
        names = [name for name, has in zip(self.classes, label, strict=True) if has]
        return ", ".join(names) or "(none)"


def list_images(config: DataConfig, seed: int) -> Listing:
    """Lists the images of `data.labels`, else those of `data.dir`.

    Entries that are no images, and rows that cannot be used, are left out with a warning.

    Args:
        config: The data section.
        seed: Seed of the test images, where they would be drawn.

    Raises:
        DataError: The images cannot be listed.
    """
    return _list_labelled(config, seed) if config.labels else _list_folder(config, seed)


def _list_labelled(config: DataConfig, seed: int) -> Listing:
    table = read_label_table(config, cache_folder().parent)
    names = [os.fsencode(name) for name in table.files.names]
    given = table.splits is not None
    splits = None
    if table.splits is not None:
        splits = np.array([_NAMES[split] for split in table.splits])
    drawn = splits is None or "test" not in splits
    fraction = config.test_fraction(is_undivided=not given)
    splits = _with_drawn(splits, table.labels, names, fraction, seed)
    return Listing(
        root=Path(str(config.labels)),
        task=table.task,
        classes=table.classes,
        paths=[table.files.path(index) for index in range(len(names))],
        labels=table.labels,
        splits=splits,
        is_drawn=drawn and "test" in splits,
        reading=table.reading,
    )


def _list_folder(config: DataConfig, seed: int) -> Listing:
    root = Path(str(config.dir))
    folders = find_splits(root)
    classes = find_classes(folders.get("train") or folders["test"])
    paths: list[bytes] = []
    names: list[bytes] = []
    labels, splits = [], []
    for name, folder in folders.items():
        index = FolderIndex(folder, cache_folder().parent / "folders")
        files, found = find_labelled_images(folder, classes, "skip", index)
        names += list(files.names)
        paths += [files.path(position) for position in range(len(files))]
        labels.append(found)
        splits += [_NAMES[name]] * len(files)
    every = np.concatenate(labels)
    given = np.array(splits)
    fraction = config.test_fraction(is_undivided=folders.get("train") == root)
    with_test = given if "test" in folders else _with_drawn(given, every, names, fraction, seed)
    return Listing(
        root=root,
        task="classification",
        classes=tuple(valid_unicode(name) for name in classes),
        paths=paths,
        labels=every,
        splits=with_test,
        is_drawn="test" in with_test and "test" not in folders,
    )


def _with_drawn(
    splits: np.ndarray | None,
    labels: np.ndarray,
    names: Sequence[bytes],
    fraction: float,
    seed: int,
) -> np.ndarray:
    """Returns the splits, with test images drawn from those to train on if there are none."""
    if splits is None:
        splits = np.full(len(labels), "train")
    splits = splits.astype("<U10")
    chosen = np.flatnonzero(splits == "train")
    if "test" in splits or not fraction or not len(chosen):
        return splits
    if fraction == 1:
        splits[chosen] = "test"
        return splits
    test = draw(
        strata_of(labels[chosen]), [names[index] for index in chosen.tolist()], fraction, seed
    )
    splits[chosen[test]] = "test"
    return splits
