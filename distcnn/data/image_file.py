"""A file of decoded images of one shape, a `.npy` array that is verified and read by row."""

import errno
import itertools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distcnn.runtime.files import block_checksums
from distcnn.runtime.watched_file import WatchedFile

Store = Callable[[np.ndarray, np.ndarray], None]


class ImageFile:
    """Decoded images in a file; only the requested rows are loaded.

    Args:
        path: The file, written by `write_images`.
        shape: Shape of the array, `(n, height, width, channels)`.
        checksums: What `write_images` returned.
        remedy: What to do about a damaged file, for messages.

    Attributes:
        shape: As given.
        ndim: Number of dimensions.
        dtype: uint8.

    Raises:
        OSError: The file cannot be opened.
        DamagedFileError: The file cannot be read or does not have the content that was written.
    """

    dtype = np.dtype(np.uint8)

    def __init__(
        self, path: Path, shape: Sequence[int], checksums: Sequence[int], remedy: str
    ) -> None:
        self.shape = tuple(shape)
        self.ndim = len(self.shape)
        self._row_bytes = math.prod(self.shape[1:])
        self._start = len(_header(self.shape))
        size = self._start + math.prod(self.shape)

        def find_damage(descriptor: int) -> str | None:
            received = os.fstat(descriptor).st_size
            if received != size:
                return f"has {received} bytes; expected {size}"
            pairs = itertools.zip_longest(block_checksums(descriptor), checksums)
            wrong = [block for block, (found, expected) in enumerate(pairs) if found != expected]
            if not wrong:
                return None
            where = f"{len(wrong)} blocks of 1 MiB, the first at byte {wrong[0] << 20}"
            return f"does not match its checksums in {where}"

        self._file = WatchedFile(path, find_damage, remedy)

    def __getitem__(self, rows: np.ndarray) -> np.ndarray:
        """Returns the images at `rows`, int64 `(batch,)`, as uint8 of shape `(batch, ...)`.

        Raises:
            DamagedFileError: The file was changed or cut since it was opened.
        """
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        pixels = images.reshape(-1).data
        size = self._row_bytes
        for begin, end, row in _runs(rows):
            self._file.read_into(pixels[begin * size : end * size], self._start + row * size)
        self._file.verify()
        return images


def write_images(path: Path, shape: Sequence[int], fill: Callable[[Store], None]) -> list[int]:
    """Writes a file of decoded images.

    Args:
        path: The file.
        shape: Shape of the array, `(n, height, width, channels)`.
        fill: Is called with a function that stores images: it takes their rows, int64 `(batch,)`,
            and uint8 `(batch, height, width, channels)`. What is not stored remains 0.

    Returns:
        The checksums of the file.

    Raises:
        OSError: The file cannot be written.
    """
    header = _header(shape)
    row_bytes = math.prod(shape[1:])
    with path.open("w+b", buffering=0) as file:
        descriptor = file.fileno()

        def store(rows: np.ndarray, images: np.ndarray) -> None:
            pixels = np.ascontiguousarray(images).reshape(-1).data
            for begin, end, row in _runs(rows):
                part = pixels[begin * row_bytes : end * row_bytes]
                _write(descriptor, part, len(header) + row * row_bytes)

        # All blocks at once, so that a full disk is noticed before anything is decoded.
        os.posix_fallocate(descriptor, 0, len(header) + math.prod(shape))
        _write(descriptor, memoryview(header), 0)
        fill(store)
        return block_checksums(descriptor)


def _header(shape: Sequence[int]) -> bytes:
    """Returns the 128 bytes before the pixels, which make the file one that `np.load` reads."""
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {tuple(shape)}, }}"
    return b"\x93NUMPY\x01\x00v\x00" + text.ljust(117).encode() + b"\n"


def _runs(rows: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Yields runs of consecutive rows as their begin and end in `rows`, and the first row."""
    begins = np.flatnonzero(np.diff(rows, prepend=-2) != 1)
    ends = np.append(begins, len(rows))[1:]
    return zip(begins.tolist(), ends.tolist(), rows[begins].tolist(), strict=True)


def _write(descriptor: int, content: memoryview, offset: int) -> None:
    while content:
        count = os.pwrite(descriptor, content, offset)
        if count == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        content, offset = content[count:], offset + count
