"""An index of the images in many class folders, so that a second run need not list them again.

Whenever an entry of a folder is added, removed or renamed, the system sets a time of the folder
that nobody else can set (`st_ctime`). What the index says of the folder holds while it is the same.
"""

import contextlib
import hashlib
import io
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from distcnn.data.image_file import EXTENSIONS
from distcnn.runtime.files import locked, open_regular, replacing

_VERSION = 1  # increase it when other entries of a folder would be taken for images
_DIGEST_BYTES = 32
_LEAST_FILES = 10_000
"""Fewer files are listed in a moment."""

_SETTLED_NS = 2_000_000_000
"""How long a folder must not have changed when it is listed: it could change again at a time that
the file system cannot tell from the first."""


@dataclass(frozen=True)
class _Folder:
    time: int
    names: bytes


class FolderIndex:
    """The names of the images in each class folder of a split, as they were when it was listed.

    Args:
        part: The split's folder.
        cache: The folder for indices; created when one is written.
    """

    def __init__(self, part: Path, cache: Path) -> None:
        key = f"{_VERSION} {sorted(EXTENSIONS)} {os.path.abspath(part)}"  # noqa: PTH100
        name = hashlib.sha256(os.fsencode(key)).hexdigest()[:32]
        self._file = cache / f"{name}.index"
        self._listed: dict[str, _Folder] = {}
        self._changed = False
        self._folders = self._read()

    def find(self, folder: Path) -> list[bytes] | None:
        """Returns the names of a folder's images, or None if it has changed or is unknown."""
        known = self._folders.get(folder.name)
        if known is None or folder.stat().st_ctime_ns != known.time:
            return None
        self._listed[folder.name] = known
        return known.names.split(b"\0")

    def add(self, folder: Path, names: list[bytes], before: os.stat_result) -> None:
        """Remembers the names of a folder's images.

        Args:
            folder: The folder.
            names: The names; at least one.
            before: The state of the folder before it was listed.
        """
        self._changed = True
        if before.st_ctime_ns < time.time_ns() - _SETTLED_NS:
            self._listed[folder.name] = _Folder(before.st_ctime_ns, b"\0".join(names))

    def save(self, files: int) -> None:
        """Writes the index if it has changed and is worth it; a failure to do so costs time only.

        Args:
            files: Number of images in all folders.
        """
        if not (self._changed and self._listed) or files < _LEAST_FILES:
            return
        content = self._packed()
        with contextlib.suppress(OSError):
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with locked(self._file.with_suffix(".lock")), replacing(self._file) as partial:
                partial.write_bytes(hashlib.sha256(content).digest() + content)

    def _packed(self) -> bytes:
        folders = self._listed.values()
        buffer = io.BytesIO()
        np.savez(
            buffer,
            folders=_to_array(b"\0".join(map(os.fsencode, self._listed))),
            times=np.array([folder.time for folder in folders], np.int64),
            lengths=np.array([len(folder.names) for folder in folders], np.int64),
            names=_to_array(b"".join(folder.names for folder in folders)),
        )
        return buffer.getvalue()

    def _read(self) -> dict[str, _Folder]:
        """Returns what the file holds; nothing if it is missing or damaged."""
        try:
            with open_regular(self._file) as file:
                digest, content = file.read(_DIGEST_BYTES), file.read()
        except OSError:
            return {}
        if hashlib.sha256(content).digest() != digest:
            return {}
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            folders = [os.fsdecode(name) for name in stored["folders"].tobytes().split(b"\0")]
            times, names = stored["times"].tolist(), stored["names"].tobytes()
            ends = np.cumsum(stored["lengths"]).tolist()
        starts = [0, *ends[:-1]]
        return {
            name: _Folder(when, names[start:end])
            for name, when, start, end in zip(folders, times, starts, ends, strict=True)
        }


def _to_array(content: bytes) -> np.ndarray:
    return np.frombuffer(content, np.uint8)
