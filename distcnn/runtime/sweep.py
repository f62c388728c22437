"""Kills what is left of a launched run on this host, as a program: `python -I sweep.py TOKEN`.

Ranks end with their launcher by themselves (`distcnn.runtime.rank_process`), unless what guards
them is suspended. Standard library only, and nothing of this package, so that it starts fast.
"""

import contextlib
import os
import signal
import sys

TOKEN_VARIABLE = "DISTCNN_LAUNCH"
"""Environment variable with the token that all processes of a launched run share."""


def sweep(token: str) -> int:
    """Kills all processes of the own user that belong to a run.

    Args:
        token: The token of the run, which their environment or command line holds.

    Returns:
        The number of processes.
    """
    own, count = ancestors(), 0
    for name in os.listdir("/proc") if os.path.isdir("/proc") else ():  # noqa: PTH112, PTH208
        if name.isdigit() and int(name) not in own and _belongs(name, token.encode()):
            with contextlib.suppress(OSError):
                os.kill(int(name), signal.SIGKILL)
                count += 1
    return count


def ancestors() -> set[int]:
    """Returns this process and those that have started it, whose command lines hold the token."""
    found, pid = set(), os.getpid()
    while pid > 1 and pid not in found:
        found.add(pid)
        try:
            with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
                pid = int(file.read().rpartition(b")")[2].split()[1])
        except (OSError, ValueError):
            break
    return found


def _belongs(pid: str, token: bytes) -> bool:
    sought = TOKEN_VARIABLE.encode() + b"=" + token
    for name in ("environ", "cmdline"):
        with contextlib.suppress(OSError):
            with open(f"/proc/{pid}/{name}", "rb") as file:  # noqa: PTH123
                content = file.read()
            if sought in content:
                return True
    return False


if __name__ == "__main__":
    sweep(sys.argv[1])
