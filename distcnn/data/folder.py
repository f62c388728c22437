"""Image folders: DIR/train/<class>/*, DIR/test/<class>/* and optionally DIR/val/<class>/*."""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config import DataConfig
from distcnn.data.encoded import EncodedSplit, parallel_map
from distcnn.data.split import Source
from distcnn.errors import DataError

_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff"})
_IGNORED = frozenset({"Thumbs.db", ".DS_Store"})
_logger = logging.getLogger("distcnn")


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
        return parallel_map(tf.io.read_file, paths, tf.TensorSpec((), tf.string))

    @override
    def describe(self, index: int) -> str:
        return os.fsdecode(self._paths[index])

    @override
    def fingerprint(self) -> str:
        """Hashes the paths, sizes and modification times of the files."""
        digest = hashlib.sha256()
        for path in self._paths:
            try:
                status = os.stat(path)  # noqa: PTH116 - a million paths, as bytes
                state = f"{status.st_size} {status.st_mtime_ns}"
            except FileNotFoundError:
                state = "missing"  # such as a dangling link; decoding reports it
            digest.update(os.path.abspath(path) + b"\0" + state.encode() + b"\0")  # noqa: PTH100
        return digest.hexdigest()

    @override
    def _select(self, indices: np.ndarray) -> None:
        self._paths = self._paths[indices]
        self._tensor = tf.constant(self._paths)


def open_folder(config: DataConfig) -> Source:
    """Opens an image folder.

    The classes are the sorted names of the folders in `train` (in `test` if there is no `train`);
    the images of a class are sorted by file name. Hidden files are ignored.

    Args:
        config: `dir` names the folder; `on_error` sets what to do with files that are not images.

    Returns:
        A source with image_shape None.

    Raises:
        DataError: The folder is missing or has another layout.
    """
    assert config.dir is not None
    root = Path(config.dir)
    folders = [root / name for name in ("train", "test") if (root / name).is_dir()]
    if not folders:
        raise DataError(_explain_missing_splits(root))
    classes = tuple(folder.name for folder in _folders(folders[0]))
    if not classes:
        raise DataError(
            f"{folders[0]} contains no class folders; expected {folders[0]}/<class>/*.jpg, one "
            "folder per class"
        )
    splits = {
        name: _open_split(root / name, classes, config.on_error)
        for name in ("train", "val", "test")
        if (root / name).is_dir()
    }
    return Source(
        name=config.name,
        classes=classes,
        train=splits.get("train"),
        validation=splits.get("val"),
        test=splits.get("test"),
        image_shape=None,
    )


def _entries(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name not in _IGNORED:
            yield path


def _folders(folder: Path) -> list[Path]:
    return [path for path in _entries(folder) if path.is_dir()]


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in _EXTENSIONS and not path.is_dir()


def _explain_missing_splits(root: Path) -> str:
    if not root.exists():
        return f"data.dir {root} does not exist; expected a folder with {root}/train/<class>/*.jpg"
    if not root.is_dir():
        return f"data.dir {root} is a file; expected a folder with {root}/train/<class>/*.jpg"
    if not any(_entries(root)):
        return f"data.dir {root} is empty; put images into {root}/train/<class>/*.jpg"
    class_names = [f.name for f in _folders(root) if any(_is_image(path) for path in _entries(f))]
    if class_names:
        names = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        return (
            f"data.dir {root} contains class folders ({names}), but neither train nor test; "
            f"move them to {root}/train"
        )
    return (
        f"data.dir {root} has neither a train nor a test folder; expected "
        f"{root}/train/<class>/*.jpg"
    )


def _open_split(part: Path, classes: tuple[str, ...], on_error: str) -> FolderSplit:
    strays = [path for path in _entries(part) if not path.is_dir()]
    paths: list[Path] = []
    labels: list[int] = []
    for folder in _folders(part):
        if folder.name not in classes:
            raise DataError(
                f"{folder} is a class that {part.parent / 'train'} lacks; expected one of its "
                f"{len(classes)} classes; remove the folder or add training images"
            )
        entries = list(_entries(folder))
        images = [path for path in entries if _is_image(path)]
        strays += [path for path in entries if not _is_image(path)]
        if not images:
            raise DataError(
                f"the class folder {folder} contains no images ({', '.join(sorted(_EXTENSIONS))}); "
                "add some or remove the folder"
            )
        paths += images
        labels += [classes.index(folder.name)] * len(images)
    if not paths:
        raise DataError(f"{part} contains no class folders; expected {part}/<class>/*.jpg")
    if strays:
        _report_strays(part, strays, on_error)
    return FolderSplit(paths, np.array(labels, np.int64))


def _report_strays(part: Path, strays: list[Path], on_error: str) -> None:
    message = (
        f"{part}: {len(strays)} entries are not images in a class folder; the first is {strays[0]}"
    )
    if on_error == "fail":
        raise DataError(
            f"{message}; expected {part}/<class>/*.jpg; remove them, or pass --data.on_error skip"
        )
    _logger.warning("%s; skipping them", message)
