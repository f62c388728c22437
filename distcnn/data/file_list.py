"""Files below a folder: many of them in little memory, and what recognises their content."""

import functools
import hashlib
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

_STAT_THREADS = 16
_SLOW_SECONDS = 5e-5
"""From this time per file on, several are examined at once: file systems on the network answer
slowly. Local ones do not, and Python's threads would only wait for each other."""

_CHUNK = 4096


class FileList:
    """Files below a folder, in the given order.

    Args:
        folder: The folder, as the system encodes its name.
        names: Paths of the files below it, without a leading slash.

    Attributes:
        folder: The folder.
        names: Object array of bytes.
    """

    def __init__(self, folder: bytes, names: Sequence[bytes] | np.ndarray) -> None:
        self.folder = folder
        self.names = np.array(names, dtype=object)

    @classmethod
    def of(cls, paths: Sequence[Path]) -> "FileList":
        """Returns a list of files wherever they are, by their paths as they are given."""
        return cls(b"", [os.fsencode(path) for path in paths])

    def __len__(self) -> int:
        return len(self.names)

    def take(self, indices: np.ndarray) -> "FileList":
        """Returns the files at `indices`, as they were examined."""
        part = FileList(self.folder, self.names[indices])
        if "states" in self.__dict__:
            part.states = self.states[indices]
        return part

    def path(self, index: int) -> bytes:
        """Returns the path of a file."""
        return os.path.join(self.folder, self.names[index])  # noqa: PTH118 - as bytes

    @functools.cached_property
    def states(self) -> np.ndarray:
        """int64 array `(files, 2)`: size in bytes and modification time in ns of each file.

        They are -1 and the number of the error for a file that cannot be examined, such as a
        dangling link; decoding reports it.
        """
        began = time.perf_counter()
        first = self._examine(self.names[:_CHUNK])
        is_slow = time.perf_counter() - began > _SLOW_SECONDS * len(first)
        rest = [self.names[i : i + _CHUNK] for i in range(_CHUNK, len(self), _CHUNK)]
        with ThreadPoolExecutor(_STAT_THREADS if is_slow else 1) as pool:
            return np.concatenate([first, *pool.map(self._examine, rest)])

    def _examine(self, names: np.ndarray) -> np.ndarray:
        states = np.empty((len(names), 2), np.int64)
        for row, name in enumerate(names):
            try:
                status = os.stat(os.path.join(self.folder, name))  # noqa: PTH116, PTH118
                states[row] = status.st_size, status.st_mtime_ns
            except OSError as error:
                states[row] = -1, error.errno or 0
        return states

    def digest(self, contents: Sequence[str] | None = None) -> str:
        """Returns a hash of the names, and of the files' sizes and times or their contents.

        Args:
            contents: A checksum of each file, or None to use sizes and times.
        """
        digest = hashlib.sha256(len(self).to_bytes(8, "little"))
        for start in range(0, len(self), _CHUNK):
            digest.update(b"\0".join(self.names[start : start + _CHUNK]) + b"\0")
        if contents is None:
            digest.update(np.ascontiguousarray(self.states).tobytes())
        else:
            digest.update("\0".join(contents).encode())
        return digest.hexdigest()
