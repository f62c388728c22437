"""Caches decoded images in memory or on disk, and finds images that cannot be decoded."""

import contextlib
import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.cache_location import cache_folder
from distcnn.data.cache_verdict import Verdict, read_verdict, write_verdict
from distcnn.data.decoded_file import DecodedFile, write_images
from distcnn.data.encoded import EncodedSplit
from distcnn.data.framing import WHOLE, Framing
from distcnn.data.split import Shape, Split
from distcnn.data.streaming import StreamedSplit
from distcnn.data.undecodable import name_all
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from distcnn.runtime.files import locked, replacing
from distcnn.runtime.free_space import available_memory, writable_disk
from distcnn.runtime.watched_file import DamagedFileError

_DECODING_VERSION = "3"  # increase it when the same file would decode to different pixels
_MEMORY_FRACTION = 0.25
_DISK_FRACTION = 0.5
_LARGE_BYTES = 1e9
_REMEDY = (
    "start the run again, which decodes the images anew; if this comes back, check the disk, or "
    "use --data.cache memory or none"
)
_logger = logging.getLogger("distcnn")


def load(
    split: Split,
    image_shape: Shape,
    config: DataConfig,
    processes: int = 1,
    framing: Framing = WHOLE,
    *,
    decoded: bool = True,
) -> Split:
    """Resizes a split and caches its images as `config.cache` specifies.

    Unless `config` says to check images when they are read, all of them are decoded once, here, so
    that bad ones are found before training starts. Call this before `split_train_validation`, so
    that both parts share the cache.

    Args:
        split: Any split. One that is already decoded is only resized.
        image_shape: Target `(height, width, channels)`.
        config: `cache` (auto: memory if the images take less than a quarter of what is available,
            else disk if they fit in half of the free space, else none) and `on_error`.
        processes: Processes on this host that each keep their own copy of the images in memory.
        framing: Which part of each image is used, and how it is resized.
        decoded: Whether decoded images can be cached, as every epoch uses the same part of them.

    Returns:
        The split with images of `image_shape`, without the bad ones if `on_error` is skip.

    Raises:
        DataError: Images cannot be decoded (all are found, and named in a file), or the cache
            folder cannot be written.
    """
    resized = split.resized(image_shape, framing)
    if not isinstance(resized, EncodedSplit):
        return resized
    if config.checks_when_reading or not decoded:
        return _stream(resized, config, processes)
    location = _choose_cache(len(split) * int(np.prod(image_shape)), config.cache, processes)
    loaded: Split = resized
    if location == "memory":
        images = np.zeros((len(split), *image_shape), np.uint8)
        bad = decode_all(resized, images.__setitem__)
        loaded = ArraySplit(images, resized.labels)
    elif location == "disk":
        stored, bad = _decode_to_disk(resized)
        loaded = ArraySplit(stored, resized.labels)
    else:
        bad = _verify_once(resized)
    return _drop_bad(bad, resized, loaded, config.on_error) if bad else loaded


def _stream(split: EncodedSplit, config: DataConfig, processes: int) -> Split:
    """Returns a split that is decoded whenever it is read, with its files cached as they are."""
    keep = config.cache == "memory" or (
        config.cache == "auto"
        and split.stored_bytes() * processes < _MEMORY_FRACTION * available_memory()
    )
    streamed = StreamedSplit(split, config.on_error, keep=keep)
    if config.checks_when_reading:
        return streamed
    assert split.image_shape is not None
    whole = split.resized(split.image_shape)  # a part may be good where the whole is not
    bad = _verify_once(whole)
    return _drop_bad(bad, whole, streamed, config.on_error) if bad else streamed


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
    if split.framing != WHOLE:
        text += f" {split.framing}"
    return hashlib.sha256(text.encode()).hexdigest()


@contextlib.contextmanager
def _reporting_write_errors(folder: Path, size: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot store {size / 1e6:,.1f} MB of decoded images in {folder}: {error.strerror}; "
            "free some space, set XDG_CACHE_HOME, or use --data.cache memory or none"
        ) from error


def _decode_to_disk(split: EncodedSplit) -> tuple[DecodedFile, list[int]]:
    assert split.image_shape is not None
    shape = (len(split), *split.image_shape)
    cache = _DiskCache(cache_folder(), _cache_key(split), shape)
    with _reporting_write_errors(cache.folder, math.prod(shape)):
        cache.folder.mkdir(parents=True, exist_ok=True)
        with locked(cache.lock, shared=True):  # so that processes verify side by side
            found = cache.identity()
            try:
                return cache.open()
            except FileNotFoundError:
                damage = None
            except DamagedFileError as error:
                damage = error
        with locked(cache.lock):
            if cache.identity() == found:  # else another process has just decoded them
                if damage is not None:
                    _logger.warning("%s %s; decoding the images again", damage.path, damage.damage)
                cache.write(split)
        with locked(cache.lock, shared=True):
            return cache.open()


@dataclass(frozen=True)
class _DiskCache:
    """The files of one cache: the decoded images and the verdict on them."""

    folder: Path
    key: str
    shape: tuple[int, ...]

    @property
    def images(self) -> Path:
        return self.folder / f"{self.key}.npy"

    @property
    def verdict(self) -> Path:
        return self.folder / f"{self.key}.json"

    @property
    def lock(self) -> Path:
        return self.folder / f"{self.key}.lock"

    def identity(self) -> list[tuple[int, int] | None]:
        """Returns what changes when a file is written anew."""
        states = [path.stat() if path.exists() else None for path in (self.images, self.verdict)]
        return [(state.st_ino, state.st_mtime_ns) if state else None for state in states]

    def open(self) -> tuple[DecodedFile, list[int]]:
        """Opens and verifies the images.

        Raises:
            FileNotFoundError: There are none.
            DamagedFileError: A file is not what was written.
        """
        size = self.images.stat().st_size
        try:
            verdict = read_verdict(self.verdict, self.key, self.shape[0])
            if verdict is None or verdict.checksums is None:
                raise DamagedFileError(self.images, "has no checksums", _REMEDY)
            if size > _LARGE_BYTES:
                _logger.info("Verifying %.1f GB of decoded images in %s", size / 1e9, self.images)
            return DecodedFile(self.images, self.shape, verdict.checksums, _REMEDY), verdict.bad
        except FileNotFoundError:
            raise
        except OSError as error:
            path = Path(error.filename or self.images)
            raise DamagedFileError(path, f"cannot be read: {error.strerror}", _REMEDY) from error

    def write(self, split: EncodedSplit) -> None:
        bad: list[int] = []
        with replacing(self.images) as partial:
            checksums = write_images(
                partial, self.shape, lambda store: bad.extend(decode_all(split, store))
            )
        write_verdict(self.verdict, Verdict(self.key, bad, checksums))


def _verify_once(split: EncodedSplit) -> list[int]:
    folder = cache_folder()
    key = _cache_key(split)
    path = folder / f"{key}.json"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / f"{key}.lock"):
            try:
                verdict = read_verdict(path, key, len(split))
            except DamagedFileError as error:
                _logger.warning("%s %s; decoding the images again", path, error.damage)
                verdict = None
            if verdict is None:
                verdict = Verdict(key, decode_all(split), None)
                write_verdict(path, verdict)
            return verdict.bad
    except OSError as error:
        _logger.warning("cannot record in %s which images are bad: %s", folder, error)
        return decode_all(split)


def _drop_bad(bad: list[int], encoded: EncodedSplit, loaded: Split, on_error: str) -> Split:
    names = name_all(explain(encoded, bad), cache_folder().parent)
    message = f"{len(bad)} of {len(encoded)} images cannot be decoded: {names}"
    if on_error == "fail":
        raise DataError(f"{message}; repair or remove them, or pass --data.on_error skip")
    good = np.delete(np.arange(len(encoded), dtype=np.int64), bad)
    lost = []
    if encoded.labels.ndim == 1:
        lost = sorted(set(encoded.labels[bad]) - set(encoded.labels[good]))
    if lost:
        raise DataError(
            f"{message}; without them the class with label {lost[0]} has no images; repair them or "
            "remove the class"
        )
    _logger.warning("%s; skipping them", message)
    return loaded.subset(good)
