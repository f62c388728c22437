"""Caches decoded images in memory or on disk, and finds images that cannot be decoded."""

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
from distcnn.data.undecodable import name_all
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from distcnn.runtime.files import locked, replacing
from distcnn.runtime.free_space import available_memory, writable_disk

_DECODING_VERSION = "2"  # increase it when the same file would decode to different pixels
_MEMORY_FRACTION = 0.25
_DISK_FRACTION = 0.5
_logger = logging.getLogger("distcnn")


def load(split: Split, image_shape: Shape, config: DataConfig, processes: int = 1) -> Split:
    """Resizes a split and caches its decoded images as `config.cache` specifies.

    All encoded images are decoded once, here, so that bad ones are found before training starts.
    Call this before `split_train_validation`, so that both parts share the cache.

    Args:
        split: Any split. One that is already decoded is only resized.
        image_shape: Target `(height, width, channels)`.
        config: `cache` (auto: memory if the images take less than a quarter of what is available,
            else disk if they fit in half of the free space, else none) and `on_error`.
        processes: Processes on this host that each keep their own copy of the images in memory.

    Returns:
        The split with images of `image_shape`, without the bad ones if `on_error` is skip.

    Raises:
        DataError: Images cannot be decoded (all are found, and named in a file), or the cache
            folder cannot be written.
    """
    resized = split.resized(image_shape)
    if not isinstance(resized, EncodedSplit):
        return resized
    location = _choose_cache(len(split) * int(np.prod(image_shape)), config.cache, processes)
    loaded: Split = resized
    if location == "memory":
        images = np.zeros((len(split), *image_shape), np.uint8)
        bad = decode_all(resized, images.__setitem__)
        loaded = ArraySplit(images, resized.labels)
    elif location == "disk":
        images, bad = _decode_to_disk(resized)
        loaded = ArraySplit(images, resized.labels)
    else:
        bad = _verify_once(resized)
    return _drop_bad(bad, resized, loaded, config.on_error) if bad else loaded


def cache_folder() -> Path:
    """Returns the folder for decoded images, distcnn/decoded in `$XDG_CACHE_HOME` or `~/.cache`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "distcnn" / "decoded"


def _choose_cache(size: int, cache: str, processes: int) -> Literal["memory", "disk", "none"]:
    if cache == "memory" or (
        cache == "auto" and size * processes < _MEMORY_FRACTION * available_memory()
    ):
        return "memory"
    if cache == "disk" or (
        cache == "auto" and size <= _DISK_FRACTION * writable_disk(cache_folder())
    ):
        return "disk"
    return "none"


def _cache_key(split: EncodedSplit) -> str:
    text = f"{_DECODING_VERSION} {split.image_shape} {split.fingerprint()}"
    return hashlib.sha256(text.encode()).hexdigest()


def _read_verdict(path: Path) -> list[int] | None:
    return json.loads(path.read_text())["bad"] if path.exists() else None


def _write_verdict(path: Path, bad: list[int]) -> None:
    with replacing(path) as partial:
        partial.write_text(json.dumps({"bad": bad}))


@contextlib.contextmanager
def _reporting_write_errors(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot store {size / 1e6:,.1f} MB of decoded images in {folder}: {error.strerror}; "
            "free some space, set XDG_CACHE_HOME, or use --data.cache memory or none"
        ) from error


def _decode_to_disk(split: EncodedSplit) -> tuple[np.ndarray, list[int]]:
    assert split.image_shape is not None
    folder = cache_folder()
    key = _cache_key(split)
    array_path, verdict_path = folder / f"{key}.npy", folder / f"{key}.json"
    shape = (len(split), *split.image_shape)
    with _reporting_write_errors(folder, int(np.prod(shape))):
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            bad = _read_verdict(verdict_path)
            if bad is None or not array_path.exists():
                with replacing(array_path) as partial:
                    bad = _decode_to_file(split, partial, shape)
                _write_verdict(verdict_path, bad)
        return np.load(array_path, mmap_mode="r"), bad


def _decode_to_file(split: EncodedSplit, path: Path, shape: tuple[int, ...]) -> list[int]:
    images = np.lib.format.open_memmap(path, mode="w+", dtype=np.uint8, shape=shape)
    # Allocates the blocks now: on a full disk, writing to a hole in the map kills the process.
    with path.open("r+b") as file:
        os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    bad = decode_all(split, images.__setitem__)
    images.flush()
    return bad


def _verify_once(split: EncodedSplit) -> list[int]:
    folder = cache_folder()
    key = _cache_key(split)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            bad = _read_verdict(folder / f"{key}.json")
            if bad is None:
                bad = decode_all(split)
                _write_verdict(folder / f"{key}.json", bad)
            return bad
    except OSError as error:
        _logger.warning("cannot record in %s which images are bad: %s", folder, error)
        return decode_all(split)


def _drop_bad(bad: list[int], encoded: EncodedSplit, loaded: Split, on_error: str) -> Split:
    names = name_all(explain(encoded, bad), cache_folder().parent)
    message = f"{len(bad)} of {len(encoded)} images cannot be decoded: {names}"
    if on_error == "fail":
        raise DataError(f"{message}; repair or remove them, or pass --data.on_error skip")
    good = np.delete(np.arange(len(encoded), dtype=np.int64), bad)
    lost = sorted(set(encoded.labels[bad]) - set(encoded.labels[good]))
    if lost:
        raise DataError(
            f"{message}; without them the class with label {lost[0]} has no images; repair them or "
            "remove the class"
        )
    _logger.warning("%s; skipping them", message)
    return loaded.subset(good)
