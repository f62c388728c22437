"""Image folders: DIR/train/<class>/*, DIR/test/<class>/* and optionally DIR/val/<class>/*."""

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

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
from distcnn.data.progress import progress_bar
from distcnn.data.split import Source
from distcnn.runtime.text import valid_unicode

_STAT_THREADS = 16  # folders on the network answer slowly


class FolderSplit(EncodedSplit):
    """A split over image files, in the given order.

    Args:
        paths: The files.
        labels: int64 array of shape `(len(paths),)`, class indices.
        verify: How the hashes recognise a file: `stat` by its size and modification time, `bytes`
            by its content.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        labels: np.ndarray,
        verify: Literal["stat", "bytes"] = "stat",
    ) -> None:
        self.labels = labels
        self.image_shape = None
        self._paths = np.array([os.fsencode(path) for path in paths], dtype=object)
        self._tensor = tf.constant(self._paths)
        self._contents: dict[bytes, str] | None = {} if verify == "bytes" else None

    @override
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        paths = tf.gather(self._tensor, indices)
        return parallel_map(_read_file, paths, tf.TensorSpec((), tf.string))

    @override
    def describe(self, index: int) -> str:
        return os.fsdecode(self._paths[index])

    @override
    def fingerprint(self) -> str:
        """Hashes the paths of the files, and their sizes and times or their contents."""
        return self._hash(lambda path: os.path.abspath(path))  # noqa: PTH100

    @override
    def content_hash(self) -> str:
        """Hashes the paths below the split's folder, and sizes and times or contents."""
        root = os.path.commonpath(list(self._paths))
        return self._hash(lambda path: os.path.relpath(path, root))

    @override
    def stored_bytes(self) -> int:
        with ThreadPoolExecutor(_STAT_THREADS) as pool:
            return sum(pool.map(_size_of, self._paths, chunksize=256))

    def _hash(self, name: Callable[[bytes], bytes]) -> str:
        digest = hashlib.sha256()
        states = map(_stat_of, self._paths) if self._contents is None else self._read_contents()
        for path, state in zip(self._paths, states, strict=True):
            digest.update(name(path) + b"\0" + state.encode() + b"\0")
        return digest.hexdigest()

    def _read_contents(self) -> list[str]:
        """Returns the checksums of the files, each of which is read once."""
        assert self._contents is not None
        missing = [path for path in self._paths if path not in self._contents]
        self._contents.update(zip(missing, _contents_of(missing), strict=True))
        return [self._contents[path] for path in self._paths]

    @override
    def _select(self, indices: np.ndarray) -> None:
        self._paths = self._paths[indices]
        self._tensor = tf.constant(self._paths)


def _size_of(path: bytes) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116 - a million paths, as bytes
    except OSError:
        return 0  # reading reports it


def _stat_of(path: bytes) -> str:
    try:
        status = os.stat(path)  # noqa: PTH116 - a million paths, as bytes
    except FileNotFoundError:
        return "missing"  # such as a dangling link; decoding reports it
    except OSError as error:
        return f"unreadable {error.errno}"
    return f"{status.st_size} {status.st_mtime_ns}"


def _contents_of(paths: Sequence[bytes]) -> list[str]:
    """Returns the checksum of each file, or how `_stat_of` describes it if it cannot be read."""

    def describe(path: bytes) -> str:
        try:
            return hashlib.sha256(read_image_file(path)).hexdigest()
        except ValueError:
            return _stat_of(path)

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
        splits[name] = FolderSplit(paths, np.array(labels, np.int64), config.verify)
    warn_of_unused_folders(root, folders, classes)
    return Source(
        name=config.name,
        classes=tuple(valid_unicode(name) for name in classes),
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        image_shape=None,
    )
