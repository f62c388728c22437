"""Keeps decoded images in memory or in a file, so that each is decoded once; finds bad ones."""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.encoded import EncodedSplit
from distcnn.data.split import Shape, Split
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from distcnn.runtime.files import locked, replacing
from distcnn.runtime.free_space import available_memory, writable_disk

_VERSION = "1"  # of the decoding: raise it when the same file would give other pixels
_MEMORY_FRACTION = 0.25
_DISK_FRACTION = 0.5
_NAMED = 3
_logger = logging.getLogger("distcnn")


def load(split: Split, image_shape: Shape, config: DataConfig, processes: int = 1) -> Split:
    """Brings a split to a size and keeps its decoded images where `config.cache` says.

    Encoded images are all decoded once, here, so that a bad one is found before the training
    starts. Call it before `split_train_validation`: the parts then share what is kept.

    Args:
        split: Any split. One that is decoded already is resized only.
        image_shape: `(height, width, channels)` wanted.
        config: `cache` (auto: memory if the images take less than a quarter of what is available,
            else a file if they fit in half of the free disk, else none) and `on_error`.
        processes: Processes of this host that each keep the images in a memory of their own.

    Returns:
        The split with images of `image_shape`; without its bad images if `on_error` is skip.

    Raises:
        DataError: Images cannot be decoded (all are found; the first few named), or the cache
            folder cannot be written.
    """
    resized = split.resized(image_shape)
    if not isinstance(resized, EncodedSplit):
        return resized
    where = _place(len(split) * int(np.prod(image_shape)), config.cache, processes)
    loaded: Split = resized
    if where == "memory":
        images = np.zeros((len(split), *image_shape), np.uint8)
        bad = decode_all(resized, images.__setitem__)
        loaded = ArraySplit(images, resized.labels)
    elif where == "disk":
        images, bad = _decode_to_disk(resized)
        loaded = ArraySplit(images, resized.labels)
    else:
        bad = _verify_once(resized)
    return _without(bad, resized, loaded, config.on_error) if bad else loaded


def cache_folder() -> Path:
    """Returns the folder of decoded images: `$XDG_CACHE_HOME` or `~/.cache`, distcnn/decoded."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distcnn" / "decoded"


def _place(size: int, cache: str, processes: int) -> Literal["memory", "disk", "none"]:
    if cache == "memory" or (
        cache == "auto" and size * processes < _MEMORY_FRACTION * available_memory()
    ):
        return "memory"
    if cache == "disk" or (
        cache == "auto" and size <= _DISK_FRACTION * writable_disk(cache_folder())
    ):
        return "disk"
    return "none"


def _stem(split: EncodedSplit) -> str:
    text = f"{_VERSION} {split.image_shape} {split.fingerprint()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read_verdict(path: Path) -> list[int] | None:
    return json.loads(path.read_text())["bad"] if path.exists() else None


def _write_verdict(path: Path, bad: list[int]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps({"bad": bad}))


@contextlib.contextmanager
def _unwritable_is_data_error(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot keep {size / 1e6:,.1f} MB of decoded images in {folder}: {error.strerror}; "
            "make room there, set XDG_CACHE_HOME, or use --data.cache memory or none"
        ) from error


def _decode_to_disk(split: EncodedSplit) -> tuple[np.ndarray, list[int]]:
    assert split.image_shape is not None
    folder = cache_folder()
    stem = _stem(split)
    array_path, verdict_path = folder / f"{stem}.npy", folder / f"{stem}.json"
    shape = (len(split), *split.image_shape)
    with _unwritable_is_data_error(folder, int(np.prod(shape))):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{stem}.lock"):
            bad = _read_verdict(verdict_path)
            if bad is None or not array_path.exists():
                with replacing(array_path) as partial:
                    bad = _decode_to_file(split, partial, shape)
                _write_verdict(verdict_path, bad)
        return np.load(array_path, mmap_mode="r"), bad


def _decode_to_file(split: EncodedSplit, path: Path, shape: tuple[int, ...]) -> list[int]:
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Claims the blocks now: a write to a mapped hole on a full disk would kill the process.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    bad = decode_all(split, images.__setitem__)
    images.flush()
    return bad


def _verify_once(split: EncodedSplit) -> list[int]:
    folder = cache_folder()
    stem = _stem(split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{stem}.lock"):
            bad = _read_verdict(folder / f"{stem}.json")
            if bad is None:
                bad = decode_all(split)
                _write_verdict(folder / f"{stem}.json", bad)
            return bad
    except OSError as error:
        _logger.warning("cannot remember in %s that the images are good: %s", folder, error)
        return decode_all(split)


def _without(bad: list[int], encoded: EncodedSplit, loaded: Split, on_error: str) -> Split:
    named = ", ".join(explain(encoded, bad[:_NAMED]))
    more = ", ..." if len(bad) > _NAMED else ""
    message = f"{len(bad)} of {len(encoded)} images cannot be decoded: {named}{more}"
    if on_error == "fail":
        raise DataError(f"{message}; mend or remove them, or pass --data.on_error skip")
    good = np.delete(np.arange(len(encoded), dtype=np.int64), bad)
    lost = sorted(set(encoded.labels[bad]) - set(encoded.labels[good]))
    if lost:
        raise DataError(
            f"{message}; without them the class with label {lost[0]} has no images; mend them or "
            "remove the class"
        )
    _logger.warning("%s; left out", message)
    return loaded.subset(good)
