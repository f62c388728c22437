"""Locks, checksums and atomic writes of files."""

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
import os
import stat
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

_BLOCK_BYTES = 1 << 20
_BLOCKS_PER_TASK = 64


@contextlib.contextmanager
def locked(path: Path, *, shared: bool = False) -> Iterator[None]:
    """Holds a lock while the block runs; other processes wait.

    Args:
        path: The file to lock, created if it is missing. It is never removed, as that would let
            two processes lock two different files of the same name.
        shared: Whether other processes may hold the lock too, if they also share it.

    Raises:
        OSError: The file cannot be created or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Replaces a file atomically.

    Yields a path in the same directory. When the block ends, the file written there is flushed to
    disk and replaces `path`; when it raises, that file is removed. Only one process may do this at
    a time: hold a lock.

    Raises:
        OSError: The file cannot be flushed or renamed.
    """
    partial = path.with_name(f".partial-{path.name}")
    partial.unlink(missing_ok=True)  # a link that somebody planted there is not followed
    try:
        yield partial
        for name in (partial, path.parent):
            descriptor = os.open(name, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def open_regular(path: Path) -> io.BufferedReader:
    """Opens a regular file, which links may lead to, for reading.

    No other file is opened: a FIFO would block, and a device might never end.

    Raises:
        OSError: The file is of another kind or cannot be opened.
    """
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    if _is_regular(path.stat()):
        file = os.fdopen(os.open(path, flags), "rb")
        if _is_regular(os.fstat(file.fileno())):  # it may have been replaced since
            return file
        file.close()
    raise OSError(errno.EINVAL, "it is not a regular file", str(path))


def _is_regular(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode)


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns the checksum of a file in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with open_regular(path) as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def block_checksums(descriptor: int) -> list[int]:
    """Returns the CRC-32 of each MiB of an open file, read by as many threads as there are cores.

    This finds damage at about a quarter of a second per GB and core. It does not prove that nobody
    forged the file, for which `file_digest` is made.

    Raises:
        OSError: The file cannot be read.
    """

    def of_task(first: int) -> list[int]:
        # Both calls release the GIL.
        return [
            zlib.crc32(os.pread(descriptor, _BLOCK_BYTES, start))
            for start in range(first, min(first + task_bytes, size), _BLOCK_BYTES)
        ]

    size = os.fstat(descriptor).st_size
    task_bytes = _BLOCKS_PER_TASK * _BLOCK_BYTES
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        tasks = pool.map(of_task, range(0, size, task_bytes))
        return [checksum for task in tasks for checksum in task]


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        OSError: The file cannot be written; it is left unchanged.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def parse_json(text: str | bytes) -> Any:
    """Returns what a JSON text holds.

    Raises:
        ValueError: The text is not JSON, or nested deeper than Python can follow, for which
            `json.loads` raises an error that no reader of files expects.
    """
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def strict_json(value: Any) -> Any:
    """Returns a value as JSON can hold it: NaN and infinity become None, arrays lists."""
    if hasattr(value, "tolist"):
        return strict_json(value.tolist())
    if isinstance(value, dict):
        return {key: strict_json(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [strict_json(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically; raises like `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")
