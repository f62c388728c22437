"""Runs one rank for the launcher, as a program of its own: `python -I rank_process.py COMMAND`.

It forwards the rank's output and exit code. Its standard input carries the launcher's orders: `t`
stops the rank, `f` does so because another rank has failed, `k` kills it. When the launcher dies,
even by `kill -9`, that input ends, which stops the rank too. Standard library only, and nothing of
this package, so that it starts fast.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
from typing import IO

GRACE_SECONDS = 20
"""How long a rank may take to save after it was asked to stop."""

FAILED_GRACE_SECONDS = 10
"""How long it may take after another rank failed: enough to report that, since it cannot save."""

_DRAIN_SECONDS = 5
"""How long the output is awaited after the rank's end; a process that it left may keep it open."""


def run(command: str) -> int:
    """Runs a shell command until it ends.

    Args:
        command: A single command; the shell is replaced by it.

    Returns:
        Its exit code; 128 + N if signal N ended it.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1):
        signal.signal(number, lambda *_: None)  # the rank handles them; it inherits no handlers
    rank = subprocess.Popen(
        ["/bin/sh", "-c", f"exec {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert rank.stdout is not None
    assert rank.stderr is not None
    relays = [
        threading.Thread(target=_relay, args=pair, daemon=True)
        for pair in ((rank.stdout, 1), (rank.stderr, 2))
    ]
    for thread in (*relays, threading.Thread(target=_obey, args=(rank,), daemon=True)):
        thread.start()
    code = rank.wait()
    for relay in relays:
        relay.join(_DRAIN_SECONDS)
    return code if code >= 0 else 128 - code


def _relay(source: IO[bytes], target: int) -> None:
    """Forwards output; discards it once the launcher is gone, so that the rank can still save."""
    with contextlib.suppress(ValueError):
        while chunk := os.read(source.fileno(), 65536):
            with contextlib.suppress(OSError):
                while chunk:
                    chunk = chunk[os.write(target, chunk) :]


def _obey(rank: subprocess.Popen[bytes]) -> None:
    """Waits for an order, or for the launcher's end, and carries it out."""
    order = os.read(0, 1)
    if order != b"k":
        _send(rank, signal.SIGTERM)
        _send(rank, signal.SIGCONT)  # a suspended one would not notice
        grace = FAILED_GRACE_SECONDS if order == b"f" else GRACE_SECONDS
        deadline = time.monotonic() + grace
        while order != b"k" and (left := deadline - time.monotonic()) > 0:
            if order == b"":
                time.sleep(left)
            elif select.select([0], [], [], left)[0]:
                order = os.read(0, 1)
    _send(rank, signal.SIGKILL)


def _send(rank: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the rank and the processes that it started."""
    if rank.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, number)


if __name__ == "__main__":
    sys.exit(run(sys.argv[1]))
