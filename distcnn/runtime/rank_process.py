"""Runs one rank for the launcher, as a program of its own: `python -I rank_process.py COMMAND`.

It forwards the rank's output and exit code. Its standard input carries the launcher's orders: `t`
stops the rank, `f` does so because another rank has failed, `k` kills it. When the launcher dies,
even by `kill -9`, that input ends, which stops the rank too. If this program dies, Linux kills the
rank. Standard library only, and nothing of this package, so that it starts fast.

Further arguments:

- `remote`: it runs on another host, where ssh has started it. The launcher then sends a `.` every
  second; without one, the link is down, and the rank is stopped. COMMAND may be a list of commands.
- `report`: the rank gets a page of memory to write its progress to (`distcnn.runtime.rank_page`),
  and what it holds is sent to the launcher, as JSON between MARK and the end of a line of standard
  error.
"""

import collections
import contextlib
import ctypes
import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import IO, Any

GRACE_SECONDS = 20
"""How long a rank may take to save after it was asked to stop."""

FAILED_GRACE_SECONDS = 10
"""How long it may take after another rank failed: enough to report that, since it cannot save."""

ORPHAN_SECONDS = 7
"""How long it may take after the launcher's death, so that after 10 seconds nothing is left."""

SILENCE_SECONDS = 6
"""How long a launcher on another host may be silent before the link to it counts as lost, if a
supervisor will start the run again."""

PATIENT_SILENCE_SECONDS = 30
"""How long, if nobody will."""

LOST_SECONDS = 3
"""How long a rank may take after that."""

REPORT_SECONDS = 0.5

MARK = "\x1e"
"""Begins a report in the rank's standard error."""

PAGE_VARIABLE = "DISTCNN_RANK_PAGE"
"""Environment variable with the file descriptor of the page."""

FIELDS = ("step", "first", "epoch", "kind", "joined", "restored", "stepped")
LAYOUT = struct.Struct("<qqqqddd")
"""The page; see `distcnn.runtime.rank_page.RankPage`."""

NO_MEMORY = 6
"""The kind of a rank that the system has killed for lack of memory; see `FailureKind`."""

_PATIENCE_SECONDS = 2
"""How long the end of a line is awaited before a report divides it."""

_DRAIN_SECONDS = 5
"""How long the output is awaited after the rank's end; a process that it left may keep it open."""

_SET_PARENT_DEATH_SIGNAL = 1

_MEMORY_SAMPLES = 20
"""For how many reports before the rank's end a kill for lack of memory is taken for its cause: a
process with much memory takes seconds to die."""


def run(command: str, *flags: str) -> int:
    """Runs a shell command until it ends.

    Args:
        command: A single command; the shell is replaced by it.
        *flags: `remote`, `report`.

    Returns:
        Its exit code; 128 + N if signal N ended it.
    """
    passed_on = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
    for number in passed_on:
        signal.signal(number, lambda *_: None)  # the rank handles them; it inherits no handlers
    page = _make_page() if "report" in flags else None
    rank = subprocess.Popen(
        ["/bin/sh", "-c", command if "remote" in flags else f"exec {command}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env=None if page is None else {**os.environ, PAGE_VARIABLE: str(page)},
        pass_fds=() if page is None else (page,),
        preexec_fn=die_with_parent(),
    )
    assert rank.stdout is not None
    assert rank.stderr is not None
    relays = [
        threading.Thread(target=_relay, args=pair, daemon=True)
        for pair in ((rank.stdout, 1), (rank.stderr, 2))
    ]
    patience = None
    if "remote" in flags:
        patience = PATIENT_SILENCE_SECONDS if page is None else SILENCE_SECONDS
    for thread in (*relays, threading.Thread(target=_obey, args=(rank, patience), daemon=True)):
        thread.start()
    if page is not None:
        _seen_kills.append(_memory_kills())
        threading.Thread(target=_report_often, args=(rank, page), daemon=True).start()
    code = rank.wait()
    for relay in relays:
        relay.join(_DRAIN_SECONDS)
    code = code if code >= 0 else 128 - code
    if page is not None:
        values = {**_read(page), "code": code}
        if code == 128 + signal.SIGKILL and _memory_kills() > _seen_kills[0]:
            values["kind"] = NO_MEMORY
        _report(values)
    return code


def _make_page() -> int:
    """Returns the descriptor of an empty page of memory."""
    if hasattr(os, "memfd_create"):
        page = os.memfd_create("distcnn-rank")
    else:
        page, path = tempfile.mkstemp()
        os.unlink(path)  # noqa: PTH108 (no pathlib, which takes a while to import)
    os.write(page, LAYOUT.pack(0, -1, 0, 0, 0.0, 0.0, 0.0))
    return page


def die_with_parent() -> Callable[[], None] | None:
    """Returns what makes a child die with this process; None if the system cannot do that."""
    try:
        prctl = ctypes.CDLL(None).prctl
    except (OSError, AttributeError):
        return None
    parent = os.getpid()

    def ask() -> None:
        prctl(_SET_PARENT_DEATH_SIGNAL, int(signal.SIGKILL))
        if os.getppid() != parent:  # which has died meanwhile
            os.kill(os.getpid(), signal.SIGKILL)

    return ask


_seen_kills: collections.deque[int] = collections.deque(maxlen=_MEMORY_SAMPLES)
_output = threading.Lock()
_ends_line = [True]


def _relay(source: IO[bytes], target: int) -> None:
    """Forwards output; discards it once the launcher is gone, so that the rank can still save."""
    with contextlib.suppress(ValueError):
        while chunk := os.read(source.fileno(), 65536):
            with _output if target == 2 else contextlib.nullcontext():
                _write(chunk, target)


def _write(chunk: bytes, target: int) -> None:
    if target == 2:
        _ends_line[0] = chunk[-1:] in (b"\n", b"\r")
    with contextlib.suppress(OSError):
        while chunk:
            chunk = chunk[os.write(target, chunk) :]


def _report_often(rank: subprocess.Popen[bytes], page: int) -> None:
    """Reports what the page holds, and whether the rank is suspended, until it ends."""
    reported = time.monotonic()
    while rank.returncode is None:
        _seen_kills.append(_memory_kills())
        if _ends_line[0] or time.monotonic() > reported + _PATIENCE_SECONDS:
            reported = time.monotonic()
            _report({**_read(page), "suspended": _is_suspended(rank.pid)})
        time.sleep(REPORT_SECONDS)


def _read(page: int) -> dict[str, Any]:
    return dict(zip(FIELDS, LAYOUT.unpack(os.pread(page, LAYOUT.size, 0)), strict=True))


def _report(values: dict[str, Any]) -> None:
    with _output:
        _write(f"{MARK}{json.dumps(values)}\n".encode(), 2)


def _memory_kills() -> int:
    """Returns how many processes the system has killed for lack of memory since it started."""
    try:
        with open("/proc/vmstat", "rb") as file:  # noqa: PTH123
            return int(file.read().partition(b"\noom_kill ")[2].split()[0])
    except (OSError, IndexError, ValueError):
        return 0


def _is_suspended(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:  # noqa: PTH123
            return file.read().rpartition(b")")[2].split()[0] == b"T"
    except (OSError, IndexError):
        return False


def _obey(rank: subprocess.Popen[bytes], patience: float | None) -> None:
    """Waits for an order, or for the launcher's end, and carries it out.

    Args:
        rank: The rank.
        patience: For how many seconds the launcher may be silent; None if it need not speak.
    """
    order = b"."
    while order == b".":
        heard = select.select([0], [], [], patience)[0]
        order = os.read(0, 1) if heard else b"s"
    if order != b"k":
        _send(rank, signal.SIGTERM)
        _send(rank, signal.SIGCONT)  # a suspended one would not notice
        grace = {b"f": FAILED_GRACE_SECONDS, b"": ORPHAN_SECONDS, b"s": LOST_SECONDS}
        deadline = time.monotonic() + grace.get(order, GRACE_SECONDS)
        while order != b"k" and (left := deadline - time.monotonic()) > 0:
            if order in (b"", b"s"):
                time.sleep(left)
            elif select.select([0], [], [], left)[0]:
                order = os.read(0, 1)
                if order == b"":
                    deadline = min(deadline, time.monotonic() + ORPHAN_SECONDS)
    _send(rank, signal.SIGKILL)


def _send(rank: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """Sends a signal to the rank and the processes that it started."""
    if rank.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(rank.pid, number)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:]))
