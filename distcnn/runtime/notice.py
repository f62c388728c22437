"""Notices that a host is about to be taken away, as clouds give them; standard library only."""

import subprocess
import threading
from collections.abc import Callable

EVERY_SECONDS = 5.0
"""How often a host asks; clouds give notice 25 seconds to two minutes before."""

_PATIENCE_SECONDS = 4.0


def is_announced(command: str) -> bool:
    """Returns whether a shell command says that this host is about to be taken away.

    Args:
        command: The command; exit code 0 is a yes, and no answer within four seconds a no.
    """
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            timeout=_PATIENCE_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0


def watch(command: str, announced: Callable[[], object], ended: threading.Event) -> None:
    """Asks until a notice has come, or until somebody ends the watch.

    Args:
        command: See `is_announced`.
        announced: Is called once, in this thread.
        ended: Set to end the watch.
    """
    while not ended.is_set():
        if is_announced(command):
            announced()
            return
        ended.wait(EVERY_SECONDS)
