"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) in every published format."""

import hashlib
import logging
import os
import tarfile
import zlib
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.cifar_batches import MAX_BATCH_BYTES, read_binary_batch, read_python_batch
from distcnn.data.cifar_classes import CIFAR10_CLASSES, CIFAR100_CLASSES
from distcnn.data.download import download
from distcnn.data.split import Source
from distcnn.errors import DataError
from distcnn.runtime.files import file_digest, open_regular

URL = "https://www.cs.toronto.edu/~kriz"
"""Where the archives are downloaded from."""
_IMAGE_SHAPE = (32, 32, 3)
_logger = logging.getLogger("distcnn")


@dataclass(frozen=True)
class Layout:
    """One published format of a data set.

    Attributes:
        folder: Name of the folder of the batches, both unpacked and inside the archive.
        archive: Name of the archive.
        algorithm: Name of the checksum algorithm in hashlib.
        checksum: Checksum of the archive, in hexadecimal.
        train: File names of the training batches.
        test: File names of the test batches.
        read: Parses the bytes of a batch; see `cifar_batches`.
        md5: MD5 of the published batches by file name, where it is known; the format itself has no
            checksum.
    """

    folder: str
    archive: str
    algorithm: str
    checksum: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    read: Callable[[bytes, int], tuple[np.ndarray, np.ndarray]]
    md5: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Cifar:
    """A data set.

    Attributes:
        classes: Class names; the position is the label.
        batch_images: Number of images in each training batch and in each test batch.
        layouts: The published formats; the first is the one to download.
        keras_names: Other names of the folder and the archive in Keras' own cache.
    """

    classes: tuple[str, ...]
    batch_images: tuple[int, int]
    layouts: tuple[Layout, ...]
    keras_names: tuple[str, str]


SETS: dict[str, Cifar] = {
    "cifar10": Cifar(
        classes=CIFAR10_CLASSES,
        batch_images=(10_000, 10_000),
        layouts=(
            Layout(
                folder="cifar-10-batches-py",
                archive="cifar-10-python.tar.gz",
                algorithm="sha256",
                checksum="6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                train=tuple(f"data_batch_{number}" for number in range(1, 6)),
                test=("test_batch",),
                read=read_python_batch,
                md5={
                    "data_batch_1": "c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "634d18415352ddfa80567beed471001a",
                    "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
                    "test_batch": "40351d587109b95175f43aff81a1287e",
                },
            ),
            Layout(
                folder="cifar-10-batches-bin",
                archive="cifar-10-binary.tar.gz",
                algorithm="md5",
                checksum="c32a1d4ab5d03f1284b67883e8d87530",
                train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
                test=("test_batch.bin",),
                read=read_binary_batch,
            ),
        ),
        keras_names=("cifar-10-batches-py-target", "cifar-10-batches-py.tar.gz"),
    ),
    "cifar100": Cifar(
        classes=CIFAR100_CLASSES,
        batch_images=(50_000, 10_000),
        layouts=(
            Layout(
                folder="cifar-100-python",
                archive="cifar-100-python.tar.gz",
                algorithm="sha256",
                checksum="85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                train=("train",),
                test=("test",),
                read=read_python_batch,
                md5={
                    "train": "16019d7e3df5f24257cddd939b257f8d",
                    "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
                },
            ),
            Layout(
                folder="cifar-100-binary",
                archive="cifar-100-binary.tar.gz",
                algorithm="md5",
                checksum="03b5dce01913d631647c71ecec9e9cb8",
                train=("train.bin",),
                test=("test.bin",),
                read=read_binary_batch,
            ),
        ),
        keras_names=("cifar-100-python-target", "cifar-100-python.tar.gz"),
    ),
}
"""The data sets by their name in the configuration."""


def open_cifar(config: DataConfig) -> Source:
    """Opens CIFAR-10 or CIFAR-100 (fine labels).

    If `config.dir` is set, looks for the batches or an archive there and nowhere else. Otherwise
    looks in Keras' cache, and downloads the archive into it if necessary.

    Args:
        config: `name` is cifar10 or cifar100.

    Returns:
        50,000 training and 10,000 test images of shape `(32, 32, 3)`.

    Raises:
        DataError: The data is not in `config.dir`, cannot be downloaded, or is damaged.
    """
    cifar = SETS[config.name]
    if config.dir is not None:
        found = _find(cifar, Path(config.dir))
        if found is None:
            wanted = [name for layout in cifar.layouts for name in (layout.folder, layout.archive)]
            raise DataError(
                f"data.dir {config.dir} does not contain {config.name}; looked for "
                f"{', '.join(wanted)}; correct the path, pass --data.name folder for images in "
                "class folders, or omit --data.dir to download the data"
            )
    else:
        found = _find_in_keras_cache(cifar) or _download(cifar)
    layout, path = found
    _logger.info("Reading %s from %s", config.name, path)
    batches = _read_archive(layout, path) if path.is_file() else _read_folder(layout, path)
    splits = []
    for names, count in zip((layout.train, layout.test), cifar.batch_images, strict=True):
        parts = [_parse(cifar, layout, path / name, batches[name], count) for name in names]
        images, labels = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        splits.append(ArraySplit(images, labels))
    return Source(
        name=config.name,
        classes=cifar.classes,
        train=splits[0],
        validation=None,
        test=splits[1],
        image_shape=_IMAGE_SHAPE,
    )


def _keras_datasets() -> Path:
    """Follows keras/src/backend/config.py, which has no public function for this."""
    if "KERAS_HOME" in os.environ:
        return Path(os.environ["KERAS_HOME"]) / "datasets"
    home = Path.home()
    return (home if os.access(home, os.W_OK) else Path("/tmp")) / ".keras" / "datasets"


def _find(cifar: Cifar, folder: Path) -> tuple[Layout, Path] | None:
    for layout in cifar.layouts:
        for path in (folder / layout.folder, folder):
            if any((path / name).is_file() for name in layout.train + layout.test):
                return layout, path
    for layout in cifar.layouts:
        if (folder / layout.archive).is_file():
            return layout, folder / layout.archive
    return None


def _find_in_keras_cache(cifar: Cifar) -> tuple[Layout, Path] | None:
    datasets = _keras_datasets()
    folder, archive = cifar.keras_names
    found = _find(cifar, datasets) or _find(cifar, datasets / folder)
    if found is None:
        for path in (datasets / f"{folder}_archive", datasets / archive):
            if path.is_file():
                return cifar.layouts[0], path
    return found


def _download(cifar: Cifar) -> tuple[Layout, Path]:
    layout = cifar.layouts[0]
    path = _keras_datasets() / layout.archive
    download(f"{URL}/{layout.archive}", path, layout.checksum)
    return layout, path


def _read_folder(layout: Layout, folder: Path) -> Mapping[str, bytes]:
    try:
        for name in layout.train + layout.test:
            _require_bounded(folder / name, (folder / name).stat().st_size)
        batches = {name: _read_batch(folder / name) for name in layout.train + layout.test}
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; expected the batches "
            f"{', '.join(layout.train + layout.test)}; unpack {layout.archive} again"
        ) from error
    _warn_of_other_batches(layout, folder, batches)
    return batches


def _read_batch(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read()


def _warn_of_other_batches(layout: Layout, folder: Path, batches: Mapping[str, bytes]) -> None:
    """Warns of batches that are not the published ones: somebody's own, or damaged."""
    known = [name for name in batches if name in layout.md5]
    with ThreadPoolExecutor(os.cpu_count()) as pool:  # hashlib releases the GIL
        found = pool.map(lambda name: hashlib.md5(batches[name]).hexdigest(), known)
    differing = [name for name, md5 in zip(known, found, strict=True) if md5 != layout.md5[name]]
    if differing:
        _logger.warning(
            "warning: %s in %s differ from the published files, so pixels or labels may be wrong; "
            "if you did not change them, unpack %s again",
            ", ".join(differing),
            folder,
            layout.archive,
        )


def _read_archive(layout: Layout, path: Path) -> Mapping[str, bytes]:
    """Reads the batches in memory; nothing is extracted, so paths in the archive are harmless."""
    received = file_digest(path, layout.algorithm)
    if received != layout.checksum:
        raise DataError(
            f"{path} is damaged or not the expected file: its {layout.algorithm} is {received}, "
            f"expected {layout.checksum}; delete it and download it again"
        )
    wanted = {f"{layout.folder}/{name}": name for name in layout.train + layout.test}
    batches = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                file = archive.extractfile(member) if member.name in wanted else None
                if file is not None:
                    _require_bounded(path / member.name, member.size)
                    batches[wanted[member.name]] = file.read()
    except (tarfile.TarError, EOFError, OSError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}; download it again") from error
    missing = sorted(set(wanted.values()) - set(batches))
    if missing:
        raise DataError(f"{path} lacks the batches {', '.join(missing)}; download it again")
    return batches


def _require_bounded(path: Path, size: int) -> None:
    if size > MAX_BATCH_BYTES:
        raise DataError(
            f"{path} has {size} bytes; expected at most {MAX_BATCH_BYTES}; download it again"
        )


def _parse(
    cifar: Cifar, layout: Layout, path: Path, content: bytes, count: int
) -> tuple[np.ndarray, np.ndarray]:
    label_bytes = 1 if len(cifar.classes) == 10 else 2
    try:
        images, labels = layout.read(content, label_bytes)
    except ValueError as error:
        raise DataError(f"{path} is not a CIFAR batch: {error}; download it again") from error
    if len(images) != count or len(labels) != count:
        raise DataError(
            f"{path} holds {len(images)} images and {len(labels)} labels; expected {count} of "
            "each; download it again"
        )
    if labels.min() < 0 or labels.max() >= len(cifar.classes):
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}; expected 0 to "
            f"{len(cifar.classes) - 1}; download it again"
        )
    return images, labels
