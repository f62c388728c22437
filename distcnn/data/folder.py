"""Image folders: DIR/train/<class>/*, DIR/test/<class>/*, DIR/val/<class>/*, or DIR/<class>/*."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config import DataConfig
from distcnn.data.cache_location import cache_folder
from distcnn.data.encoded import EncodedSplit, parallel_map
from distcnn.data.file_list import FileList
from distcnn.data.folder_index import FolderIndex
from distcnn.data.folder_layout import (
    find_classes,
    find_labelled_images,
    find_splits,
    warn_of_unused_folders,
)
from distcnn.data.image_file import read_image_file
from distcnn.data.progress import progress_bar
from distcnn.data.split import Source
from distcnn.runtime.text import valid_unicode


class FolderSplit(EncodedSplit):
    """A split over image files, in the given order.

    Args:
        files: The files.
        labels: int64 array of shape `(len(files),)`, class indices.
        verify: How the hashes recognise a file: `stat` by its size and modification time, `bytes`
            by its content.
    """

    def __init__(
        self,
        files: FileList,
        labels: np.ndarray,
        verify: Literal["stat", "bytes"] = "stat",
    ) -> None:
        self.labels = labels
        self.image_shape = None
        self._files = files
        self._names = tf.constant(files.names)
        self._contents: dict[bytes, str] | None = {} if verify == "bytes" else None

    @override
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        names = tf.gather(self._names, indices)
        paths = tf.strings.join([os.path.join(self._files.folder, b""), names])  # noqa: PTH118
        return parallel_map(_read_file, paths, tf.TensorSpec((), tf.string))

    @override
    def describe(self, index: int) -> str:
        return os.fsdecode(self._files.path(index))

    @override
    def names(self) -> Sequence[bytes]:
        return list(self._files.names)

    @override
    def fingerprint(self) -> str:
        """Hashes the paths of the files, and their sizes and times or their contents."""
        folder = os.path.abspath(self._files.folder)  # noqa: PTH100
        return hashlib.sha256(folder + b"\0" + self.content_hash().encode()).hexdigest()

    @override
    def content_hash(self) -> str:
        """Hashes the paths below the split's folder, and sizes and times or contents."""
        return self._files.digest(None if self._contents is None else self._read_contents())

    @override
    def stored_bytes(self) -> int:
        return int(np.maximum(self._files.states[:, 0], 0).sum())  # -1: reading reports it

    def _read_contents(self) -> list[str]:
        """Returns the checksums of the files, each of which is read once."""
        assert self._contents is not None
        paths = [self._files.path(index) for index in range(len(self._files))]
        missing = [path for path in paths if path not in self._contents]
        self._contents.update(zip(missing, _contents_of(missing), strict=True))
        return [self._contents[path] for path in paths]

    @override
    def _select(self, indices: np.ndarray) -> None:
        self._files = self._files.take(indices)
        self._names = tf.constant(self._files.names)


def _contents_of(paths: Sequence[bytes]) -> list[str]:
    """Returns the checksum of each file, or why it cannot be read."""

    def describe(path: bytes) -> str:
        try:
            return hashlib.sha256(read_image_file(path)).hexdigest()
        except ValueError as error:
            return f"unreadable: {error}"

    with (
        ThreadPoolExecutor(os.cpu_count()) as pool,
        progress_bar("Verifying images", len(paths)) as advance,
    ):
        found = []
        for state in pool.map(describe, paths):
            found.append(state)
            advance(1)
        return found


# A graph even when called eagerly, so that every failure is an OpError.
@tf.function(autograph=False)
def _read_file(path: tf.Tensor) -> tf.Tensor:
    def read(path: bytes) -> np.ndarray:
        return np.array(read_image_file(path), dtype=object)  # bytes would lose zeros at the end

    return tf.ensure_shape(tf.numpy_function(read, [path], tf.string, stateful=False), ())


def open_folder(config: DataConfig) -> Source:
    """Opens an image folder.

    The classes are the sorted names of the folders in `train` (in `test` if there is no `train`);
    the images of a class are sorted by file name. Hidden files and known junk are ignored. The
    folders may have the names in `folder_layout.SPELLINGS`. Without them, the folders are the
    classes. Bytes of a class name that are not UTF-8 are replaced; the files keep their paths.

    Args:
        config: `dir` names the folder; `on_error` sets what to do with files that are not images.

    Returns:
        A source with image_shape None.

    Raises:
        DataError: The folder is missing or has another layout, or there are fewer than two classes.
    """
    assert config.dir is not None
    root = Path(config.dir)
    folders = find_splits(root)
    classes = find_classes(folders.get("train") or folders["test"])
    splits = {}
    for name, folder in folders.items():
        index = FolderIndex(folder, cache_folder().parent / "folders")
        files, labels = find_labelled_images(folder, classes, config.on_error, index)
        splits[name] = FolderSplit(files, labels, config.verify)
    if folders.get("train") != root:
        warn_of_unused_folders(root, folders, classes)
    return Source(
        name=config.name,
        classes=tuple(valid_unicode(name) for name in classes),
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        image_shape=None,
        is_undivided=folders.get("train") == root,
    )
