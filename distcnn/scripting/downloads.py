"""Downloads: one process of each host downloads and unpacks a file, while the others wait."""

import fcntl
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

from distcnn.runtime.files import parse_json
from distcnn.runtime.keras_hooks import EXTRACT_ARCHIVE, GET_FILE, Hooks

_LOCK = ".distcnn.lock"
"""A file in Keras' folder, which also says what was unpacked when."""

_SLACK = 1.0
"""Seconds by which another rank may have begun earlier."""


def install_download_hooks(hooks: Hooks) -> None:
    """Makes the processes of a host take turns in `keras.utils.get_file`.

    Keras unpacks an archive at every call. A rank that did so again would rewrite the files that
    another one is reading, so what has been unpacked since the run began is left as it is.
    """
    lock = _LockFile(time.time() - _SLACK)
    hooks.replace(GET_FILE, lock.taking_turns)
    hooks.replace(EXTRACT_ARCHIVE, lock.unpacking_once)


class _LockFile:
    """The file by which the processes of a host take turns.

    Args:
        start: When the run began, in seconds since the epoch.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._file: TextIO | None = None

    def taking_turns(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `get_file`, called by one process at a time."""

        def get_file(*arguments: Any, **keywords: Any) -> Any:
            folder = Path(os.environ.get("KERAS_HOME") or Path.home() / ".keras")
            folder.mkdir(parents=True, exist_ok=True)
            with (folder / _LOCK).open("a+") as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                self._file = file
                try:
                    return original(*arguments, **keywords)
                finally:
                    self._file = None

        return get_file

    def unpacking_once(self, original: Callable[..., Any]) -> Callable[..., Any]:
        """Returns `extract_archive`, which leaves alone what this run has unpacked."""

        def extract_archive(file_path: Any, path: Any = ".", *arguments: Any, **kw: Any) -> Any:
            if self._file is None:
                return original(file_path, path, *arguments, **kw)
            key = f"{Path(file_path).absolute()} -> {Path(path).absolute()}"
            unpacked = self._read()
            if unpacked.get(key, 0.0) >= self._start:
                return True
            done = original(file_path, path, *arguments, **kw)
            if done:
                self._write({**unpacked, key: time.time()})
            return done

        return extract_archive

    def _read(self) -> dict[str, float]:
        """Returns when each archive was unpacked; of a damaged file, nothing."""
        assert self._file is not None
        self._file.seek(0)
        try:
            found = parse_json(self._file.read() or "{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _write(self, unpacked: dict[str, float]) -> None:
        assert self._file is not None
        self._file.truncate(0)
        json.dump(unpacked, self._file)
        self._file.flush()
