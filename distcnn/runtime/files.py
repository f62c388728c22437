"""Locks, checksums and atomic writes of files."""

import contextlib
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock while the block runs; other processes wait.

    Args:
        path: The file to lock, created if it is missing. It is never removed, as that would let
            two processes lock two different files of the same name.

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
    """Replaces a file atomically.

    Yields a path in the same directory. When the block ends, the file written there is flushed to
    disk and replaces `path`; when it raises, that file is removed. Only one process may do this at
    a time: hold a lock.

    Raises:
        OSError: The file cannot be flushed or renamed.
    """
    partial = path.with_name(f".partial-{path.name}")
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


def write_text(path: Path, text: str) -> None:
    """Writes a text file atomically.

    Raises:
        OSError: The file cannot be written; it is left unchanged.
    """
    with replacing(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file atomically; raises like `write_text`."""
    write_text(path, json.dumps(content, indent=2) + "\n")
