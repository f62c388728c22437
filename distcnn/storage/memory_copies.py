"""Copies of a run's state in the memory of a host: checkpoints that outlive the run's processes.

Every process of a data-parallel run holds the whole state, so a copy on each host survives the loss
of all others. A copy is a checkpoint file in `/dev/shm`, which is memory and not a disk.
"""

import contextlib
import fcntl
import json
import logging
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.errors import DistcnnError
from distcnn.runtime.files import open_regular, parse_json, write_text
from distcnn.storage.checkpoint import (
    Checkpoints,
    Progress,
    read_checkpoint,
    stored_mark,
    write_checkpoint,
)
from distcnn.storage.run_directory import read_run_id

log = logging.getLogger("distcnn")

SHARED_MEMORY = Path("/dev/shm")

_OWNER = "run.json"


class MemoryCopies:
    """The copies of one run on this host, used by one process of the host.

    Opening removes the copies of runs that have ended or were deleted.

    Args:
        run_id: The id of the run.
        directory: Its run directory.
        memory: A file system in memory.

    Raises:
        OSError: The file system cannot be used.
    """

    def __init__(self, run_id: str, directory: Path, memory: Path = SHARED_MEMORY) -> None:
        own = memory / f"distcnn-{os.getuid()}"
        _make_private(own)
        _remove_stale(own, keep=run_id)
        self._folder = own / run_id
        self._folder.mkdir(mode=0o700, exist_ok=True)
        self._lock = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        write_text(self._folder / _OWNER, json.dumps({"directory": str(directory.resolve())}))
        self._copies = Checkpoints(self._folder, keep=1)

    def free_bytes(self) -> int:
        """Returns how many bytes a copy may have."""
        return shutil.disk_usage(self._folder).free

    def write(
        self, arrays: dict[str, np.ndarray], progress: Progress, mark: dict[str, Any] | None
    ) -> None:
        """Writes a copy, whole or not at all, then removes the one before.

        Args:
            arrays: The state: arrays by name.
            progress: The progress of the run.
            mark: Which metrics belong to it, from `metrics_mark`.

        Raises:
            OSError: There is too little memory.
        """
        path = self._copies.path(progress.step)
        write_checkpoint(path, arrays, progress, mark)
        for old in self._copies.newest_first():
            if old != path:
                self._copies.delete(old)

    def newest(self, after: int) -> tuple[dict[str, np.ndarray], Progress, Any] | None:
        """Reads the newest intact copy.

        Args:
            after: The copy must be of a later step.

        Returns:
            The state, the progress, and the mark of the metrics; None if there is no such copy.
        """
        for path in self._copies.newest_first():
            with contextlib.suppress(DistcnnError, OSError):
                arrays, progress = read_checkpoint(path)
                return (arrays, progress, stored_mark(path)) if progress.step > after else None
        return None

    def close(self, *, remove: bool) -> None:
        """Lets other processes use the copies.

        Args:
            remove: Whether they are of no use any more.
        """
        if remove:
            shutil.rmtree(self._folder, ignore_errors=True)
        os.close(self._lock)


def _make_private(folder: Path) -> None:
    """Makes a folder that nobody else can change, or checks that it is one.

    Raises:
        OSError: It is a link, or belongs to somebody else.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or not folder.is_dir() or status.st_uid != os.getuid():
        raise PermissionError(1, "it belongs to somebody else", str(folder))


def _remove_stale(own: Path, keep: str) -> None:
    """Removes the copies of runs that do not run, and that nobody can go on with."""
    for folder in own.iterdir():
        if folder.name == keep or not folder.is_dir():
            continue
        with _locked_if_free(folder) as is_free:
            if is_free and not _can_go_on(folder):
                log.debug("removing the copies in %s", folder)
                shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked_if_free(folder: Path) -> Iterator[bool]:
    try:
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        yield True
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield True
    except BlockingIOError:
        yield False
    finally:
        os.close(lock)


def _can_go_on(folder: Path) -> bool:
    try:
        with open_regular(folder / _OWNER) as file:
            directory = Path(parse_json(file.read())["directory"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return read_run_id(directory) == folder.name and not (directory / "summary.json").exists()
