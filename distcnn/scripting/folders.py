"""Folders and files that every rank of a host creates or removes in the same moment.

`if not os.path.exists(folder): os.makedirs(folder)` is safe in one process. Of several, one creates
the folder between the question and the answer of another.
"""

import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from distcnn.distribute.base import Backend
from distcnn.runtime.keras_hooks import FunctionMaker, HookPoint, Hooks

MKDIR = HookPoint(os, "mkdir")
REMOVALS = (HookPoint(os, "remove"), HookPoint(os, "unlink"), HookPoint(os, "rmdir"))
RMTREE = HookPoint(shutil, "rmtree")

_SLACK = 1.0
"""Seconds by which the clock of a file system may lag behind."""

_ATTEMPTS = 1000


def install_folder_hooks(hooks: Hooks, backend: Backend) -> None:
    """Makes it no error that another rank has just created or removed a path.

    Args:
        hooks: Where to install.
        backend: Knows whether there are other ranks.
    """
    if backend.size == 1:
        return
    start = time.time() - _SLACK
    hooks.replace(MKDIR, _creating(start))
    for point in REMOVALS:
        hooks.replace(point, _removing(start))
    hooks.replace(RMTREE, _removing_tree(start))


def _changed_since(start: float, path: Path) -> bool:
    try:
        return path.stat().st_ctime >= start
    except OSError:
        return False


def _creating(start: float) -> FunctionMaker:
    own: set[str] = set()

    def make(original: Any) -> Any:
        @functools.wraps(original)
        def mkdir(path: Any, *arguments: Any, **keywords: Any) -> None:
            if keywords.get("dir_fd") is not None:
                return original(path, *arguments, **keywords)
            name = str(Path(os.fsdecode(path)).absolute())
            try:
                original(path, *arguments, **keywords)
            except FileExistsError:
                by_another = name not in own and Path(name).is_dir()
                if not (by_another and _changed_since(start, Path(name))):
                    raise
            own.add(name)
            return None

        return mkdir

    return make


def _removing(start: float) -> FunctionMaker:
    def make(original: Any) -> Any:
        @functools.wraps(original)
        def remove(path: Any, *arguments: Any, **keywords: Any) -> None:
            try:
                original(path, *arguments, **keywords)
            except FileNotFoundError:
                if keywords.get("dir_fd") is not None or not _just_removed(path, start):
                    raise

        return remove

    return make


def _removing_tree(start: float) -> FunctionMaker:
    def make(original: Callable[..., None]) -> Any:
        @functools.wraps(original)
        def rmtree(path: Any, *arguments: Any, **keywords: Any) -> None:
            for _ in range(_ATTEMPTS):  # each removes something, or finds nothing left
                try:
                    return original(path, *arguments, **keywords)
                except FileNotFoundError:
                    if os.path.lexists(path):
                        continue
                    if not _just_removed(path, start):
                        raise
                    return None
            return original(path, *arguments, **keywords)

        return rmtree

    return make


def _just_removed(path: Any, start: float) -> bool:
    """Returns whether something has been removed beside a missing path since the start."""
    return _changed_since(start, Path(os.fsdecode(path)).absolute().parent)
