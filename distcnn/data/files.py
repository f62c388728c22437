"""Files that several processes share: one writer at a time, whole or not at all."""

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock while the block runs; other processes wait.

    Args:
        path: The file to lock, created if it is missing. It is left behind, since removing it
            would let two processes lock two different files of that name.

    Raises:
        OSError: The file cannot be created or locked.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Writes a file whole or not at all.

    Yields a path in the same directory. When the block ends, the file written there is flushed to
    the disk and takes the place of `path`; when it raises, that file is removed. Only one process
    may do this at a time: hold a lock.

    Raises:
        OSError: The file cannot be flushed or renamed.
    """
    partial = path.with_name(f".{path.name}.partial")
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


def file_digest(path: Path, algorithm: str = "sha256") -> str:
    """Returns the checksum of a file in hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()
