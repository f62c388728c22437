"""Image folders: DIR/train/<class>/*, DIR/test/<class>/* and optionally DIR/val/<class>/*."""

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config import DataConfig
from distcnn.data.encoded import EncodedSplit, parallel_map
from distcnn.data.folder_layout import (
    find_classes,
    find_labelled_images,
    find_splits,
    warn_of_unused_folders,
)
from distcnn.data.image_file import read_image_file
from distcnn.data.split import Source
from distcnn.runtime.text import valid_unicode


class FolderSplit(EncodedSplit):
    """A split over image files, in the given order.

    Args:
        paths: The files.
        labels: int64 array of shape `(len(paths),)`, class indices.
    """

    def __init__(self, paths: Sequence[Path], labels: np.ndarray) -> None:
        self.labels = labels
        self.image_shape = None
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=object)
        self._tensor = tf.constant(self._paths)

    @override
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        paths = tf.gather(self._tensor, indices)
        return parallel_map(_read_file, paths, tf.TensorSpec((), tf.string))

    @override
    def describe(self, index: int) -> str:
        return os.fsdecode(self._paths[index])

    @override
    def fingerprint(self) -> str:
        """Hashes the paths, sizes and modification times of the files."""
        return self._hash(lambda path: os.path.abspath(path))  # noqa: PTH100

    @override
    def content_hash(self) -> str:
        """Hashes the paths below the split's folder, sizes and modification times of the files."""
        root = os.path.commonpath(list(self._paths))
        return self._hash(lambda path: os.path.relpath(path, root))

    def _hash(self, name: Callable[[bytes], bytes]) -> str:
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                status = os.stat(path)  # noqa: PTH116 - a million paths, as bytes
                state = f"{status.st_size} {status.st_mtime_ns}"
            except FileNotFoundError:
                state = "missing"  # such as a dangling link; decoding reports it
            except OSError as error:
                state = f"unreadable {error.errno}"
            digest.update(name(path) + b"\0" + state.encode() + b"\0")
        return digest.hexdigest()

    @override
    def _select(self, indices: np.ndarray) -> None:
        self._paths = self._paths[indices]
        self._tensor = tf.constant(self._paths)


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
    folders may have the names in `folder_layout.SPELLINGS`. Bytes of a class name that are not
    UTF-8 are replaced; the files keep their paths.

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
        paths, labels = find_labelled_images(folder, classes, config.on_error)
        splits[name] = FolderSplit(paths, np.array(labels, np.int64))
    warn_of_unused_folders(root, folders, classes)
    return Source(
        name=config.name,
        classes=tuple(valid_unicode(name) for name in classes),
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        image_shape=None,
    )
