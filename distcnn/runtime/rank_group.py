"""The ranks that the launcher started: stops them on a signal, and keeps why they ended."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from distcnn.runtime import rank_process
from distcnn.runtime.files import parse_json
from distcnn.runtime.signals import REPEAT_SECONDS, SIGNALS
from distcnn.runtime.supervision import Supervision

_CAUSE = re.compile(r"(?:error: |stopped by ).*\S")
_REPORT = re.compile(rf"{rank_process.MARK}(\{{.*?\}})\n")
_POLL_SECONDS = 0.1
_SIGN_SECONDS = 1.0
"""How often a rank on another host is told that the launcher lives."""
_GRACE = {b"t": rank_process.GRACE_SECONDS, b"f": rank_process.FAILED_GRACE_SECONDS}
_MARGIN_SECONDS = 3
"""How long after the end of its grace a rank on another host counts as lost."""
_KILL_MARGIN_SECONDS = 1.5
"""How long after it was to be killed: the link to the host is then most likely down."""
_NOT_FAILED = (0, 75)
"""Exit codes of a rank that is done, or that has saved because a signal asked it to."""


class RemoteCommand(str):
    """A command that starts `rank_process` on another host, and passes standard input on to it."""

    __slots__ = ()


class Stream(Protocol):
    """What output is written to."""

    def write(self, text: str, /) -> object:
        """Writes a text."""

    def flush(self) -> None:
        """Flushes the stream."""


@dataclass
class _Ending:
    """How a rank ended: its last line that gives a cause, its exit code, and when."""

    stream: Stream
    cause: str = ""
    code: int = 0
    time: float = field(default=float("inf"))
    reported: Callable[[dict[str, Any]], None] | None = None
    report: dict[str, Any] = field(default_factory=dict)

    def write(self, text: str) -> None:
        report = _REPORT.search(text) if self.reported is not None else None
        if report is not None and self.reported is not None:
            self.report = parse_json(report[1])
            self.reported(self.report)
            text = text[: report.start()]
            if text.endswith("<stderr>:"):
                return
            text += "\n"
        found = _CAUSE.search(text)
        if found:
            self.cause = found[0]
        self.stream.write(text)

    def flush(self) -> None:
        self.stream.flush()


class RankGroup:
    """Starts ranks in place of Horovod's `safe_shell_exec`.

    Args:
        forward: Copies the lines of a pipe to a stream with a prefix; Horovod's
            `prefix_connection`.
        supervision: Is told what the ranks report and how they end, and gives orders; None without
            a supervisor.

    Attributes:
        signals: Names of the signals that the launcher received.
    """

    def __init__(
        self, forward: Callable[..., None], supervision: Supervision | None = None
    ) -> None:
        self._forward = forward
        self._supervision = supervision
        self._endings: dict[int, _Ending] = {}
        self.signals: list[str] = []

    def listen(self) -> threading.Event:
        """Listens for signals: the first stops the ranks, a second one kills them.

        Returns:
            Set once a signal has arrived.
        """
        event = threading.Event()

        last = float("-inf")

        def record(number: int, frame: FrameType | None) -> None:
            nonlocal last
            before, last = last, time.monotonic()
            if last > before + REPEAT_SECONDS:
                self.signals.append(signal.Signals(number).name)
            event.set()

        def obey(order: bytes) -> None:
            self.signals += ["the launcher"] * (2 if order == b"k" else 1)
            event.set()

        for number in SIGNALS:
            signal.signal(number, record)
        if self._supervision is not None:
            self._supervision.listen(obey)
        return event

    def execute(
        self,
        command: str,
        env: dict[str, str] | None = None,
        stdout: Stream | None = None,
        stderr: Stream | None = None,
        index: int = 0,
        events: Sequence[threading.Event] = (),
        prefix_output_with_timestamp: bool = False,
    ) -> int:
        """Runs one rank until it ends.

        Args:
            command: The shell command that starts the rank.
            env: Its environment, or None for the own one.
            stdout: Gets the lines of its standard output; by default, the own one.
            stderr: Gets the lines of its standard error; by default, the own one.
            index: The rank.
            events: Each stops the rank when it is set.
            prefix_output_with_timestamp: Whether lines begin with the time.

        Returns:
            Its exit code.
        """
        ending = self._endings[index] = _Ending(stderr or sys.stderr)
        if self._supervision is not None:
            tell = self._supervision.tell
            ending.reported = lambda report: tell(event="report", rank=index, **report)
        process = subprocess.Popen(
            self._line(command),
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        outputs = [
            (process.stdout, stdout or sys.stdout, "stdout"),
            (process.stderr, ending, "stderr"),
        ]
        threads = [
            threading.Thread(target=self._forward, args=(*o, index, prefix_output_with_timestamp))
            for o in outputs
        ]
        for thread in threads:
            thread.start()
        ending.code = self._await(process, events, is_remote=isinstance(command, RemoteCommand))
        ending.time = time.monotonic()
        for thread in threads:
            thread.join()
        if self._supervision is not None:
            own = {"code": ending.code, "cause": ending.cause, "time": time.time()}
            self._supervision.tell(event="end", rank=index, **ending.report | own)
        return ending.code

    def _line(self, command: str) -> list[str]:
        """Returns the command line that starts a rank."""
        report = ["report"] if self._supervision is not None else []
        if isinstance(command, RemoteCommand):
            return ["/bin/sh", "-c", f"exec {command} {' '.join(report)}"]
        return [sys.executable, "-I", str(Path(rank_process.__file__)), command, *report]

    def _await(
        self, process: subprocess.Popen[Any], events: Sequence[threading.Event], *, is_remote: bool
    ) -> int:
        """Passes orders on until the rank ends; returns its exit code."""
        given, deadline, said = b"", float("inf"), time.monotonic()
        while process.poll() is None:
            order, now = self._order(events), time.monotonic()
            if order not in (b"", given):
                given = order
                self._say(process, order)
                grace = _GRACE.get(order)
                deadline = now + (grace + _MARGIN_SECONDS if grace else _KILL_MARGIN_SECONDS)
            elif is_remote and now > deadline:
                process.kill()  # the link to the host is down
            elif is_remote and now > said + _SIGN_SECONDS:
                said = now
                self._say(process, b".")
            else:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(_POLL_SECONDS)
        assert process.stdin is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        code: int = process.returncode
        return code if code >= 0 else 128 - code

    @staticmethod
    def _say(process: subprocess.Popen[Any], order: bytes) -> None:
        """Sends an order, if the pipe has room: a link that is down blocks nobody."""
        assert process.stdin is not None
        os.set_blocking(process.stdin.fileno(), False)
        with contextlib.suppress(OSError):
            os.write(process.stdin.fileno(), order)

    def _order(self, events: Sequence[threading.Event]) -> bytes:
        """Returns what a rank is to be told; see `rank_process`."""
        if len(self.signals) > 1:
            return b"k"
        if not any(event.is_set() for event in events):
            return b""
        failed = any(ending.code not in _NOT_FAILED for ending in self._endings.values())
        return b"f" if failed and not self.signals else b"t"

    def last_line(self) -> str | None:
        """Returns what the launcher says last; None if the first rank to end gave the cause."""
        if len(self.signals) > 1:
            return (
                f"stopped by a second signal ({', '.join(self.signals)}) before the run had saved; "
                "run the same command again to continue from its last checkpoint"
            )
        failed = {rank: ending for rank, ending in self._endings.items() if ending.code}
        order = sorted(failed, key=lambda rank: failed[rank].time)
        if not order:
            return None
        first = failed[order[0]]
        # Horovod takes the times itself, and may name another one of those that ended together.
        named = [e for e in failed.values() if e.code == first.code and e.time < first.time + 1]
        if all(ending.cause for ending in named):
            return None
        killed = first.code - 128
        if killed in set(signal.Signals) and not self.signals:
            name = signal.Signals(killed).name
            hint = ", as Linux does when memory runs short" if name == "SIGKILL" else ""
            return f"rank {order[0]} was ended by {name}{hint}"
        for rank in order:
            if failed[rank].cause:
                return f"rank {rank} reports {failed[rank].cause}"
        if self.signals:
            return f"stopped by {self.signals[0]}; run the same command again to continue"
        return None
