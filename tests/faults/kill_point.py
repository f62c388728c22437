"""Kills a process before one of its operations on files."""

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}


class KillPoint:
    """Counts this process's operations on files in a folder, and kills it before one of them.

    Args:
        folder: Only operations below this folder count.
        number: Before which one to kill, counted from 1; 0 never kills.
        slow_seconds: How long each operation of a thread other than the main one takes.
    """

    def __init__(self, folder: Path, number: int, slow_seconds: float = 0) -> None:
        self._folder = str(folder)
        self._number = number
        self._slow_seconds = slow_seconds
        self._lock = threading.Lock()
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Is called by the interpreter before each audited event."""
        if event not in _EVENTS or not arguments or not self._counts(event, arguments):
            return
        if threading.current_thread() is not threading.main_thread():
            time.sleep(self._slow_seconds)
        with self._lock:
            self.count += 1
            if self.count == self._number:
                os.kill(os.getpid(), signal.SIGKILL)

    def _counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            reads = mode in ("r", "rb") if mode else not flags & (os.O_WRONLY | os.O_RDWR)
            if reads:
                return False
        return os.fsdecode(path).startswith(self._folder)
