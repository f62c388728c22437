"""Why an attempt ended, and whether another one can help."""

import itertools
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from distcnn.runtime.rank_page import FailureKind

EXIT_STOPPED = 75

_SSH_FAILED = 255


@dataclass(frozen=True)
class RankEnd:
    """How a rank ended.

    Attributes:
        rank: The rank.
        code: Its exit code; 128 + N if signal N ended it.
        time: When, in seconds since the epoch.
        cause: Its last line that gives a cause, or nothing.
        kind: What it said about it.
    """

    rank: int
    code: int
    time: float = 0.0
    cause: str = ""
    kind: FailureKind = FailureKind.UNKNOWN


@dataclass(frozen=True)
class Failure:
    """Why an attempt failed.

    Attributes:
        rank: The rank that failed first; None if none had begun.
        cause: The cause, in words.
        code: The exit code of the whole command if this ends it.
        mendable: Whether another attempt may help.
        repeatable: Whether another attempt fails in the same way, if it is the program's fault.
        since: When the rank was last known to work, in seconds since the epoch; 0 if that is when
            it was last heard of.
    """

    rank: int | None
    cause: str
    code: int = 1
    mendable: bool = True
    repeatable: bool = False
    since: float = 0.0


def find_failure(
    ends: Sequence[RankEnd],
    *,
    workers: int,
    made_steps: bool,
    is_first: bool,
    last_line: Callable[[int | None], str] = lambda rank: "",
) -> Failure:
    """Returns why an attempt failed.

    Args:
        ends: The ranks that have ended, in any order.
        workers: The number of ranks.
        made_steps: Whether the attempt made a step.
        is_first: Whether it was the first attempt.
        last_line: Returns the last line that a rank has printed, or for None the ranks' launcher.
    """
    failed = sorted((end for end in ends if end.code), key=lambda end: end.time)
    if not failed:
        cause = last_line(None).removeprefix("error: ") or "the workers could not be started"
        return Failure(None, cause, repeatable=True, mendable=not is_first)
    # Ranks that lost another one, or were stopped because of it, are not to blame.
    blamed = [end for end in failed if end.kind is not FailureKind.PEER_LOST]
    first = (blamed or failed)[0]
    kinds = [end.kind for end in ends]
    everywhere = len(ends) == workers and all(kind is FailureKind.EXCEPTION for kind in kinds)
    at_start = is_first and not made_steps
    if first.kind is FailureKind.NO_MEMORY:
        return Failure(first.rank, _out_of_memory(first), _exit_code(first), repeatable=True)
    if not first.cause:
        first = replace(first, cause=last_line(first.rank))
    if first.kind is FailureKind.UNKNOWN:
        return _unexplained(first, at_start=at_start)
    mendable = first.kind is not FailureKind.UNMENDABLE
    if first.kind is FailureKind.EXCEPTION:
        mendable = made_steps and not everywhere
    if first.kind is FailureKind.REFUSED:
        mendable = not at_start
    repeatable = first.kind is not FailureKind.PEER_LOST
    return Failure(first.rank, _cause_of(first), _exit_code(first), mendable, repeatable)


def _exit_code(end: RankEnd) -> int:
    return end.code if end.code < 128 else 1


def _out_of_memory(end: RankEnd) -> str:
    if end.code > 128:
        return "it ran out of memory, and the system killed it; lower the batch size or workers"
    return f"it ran out of memory ({_cause_of(end)}); lower the batch size or workers"


def _unexplained(end: RankEnd, *, at_start: bool) -> Failure:
    """Returns the failure of a rank that could not say anything, or was no rank of ours."""
    number = end.code - 128
    if number in set(signal.Signals):
        name = signal.Signals(number).name
        is_crash = name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")
        hint = " (kill -9)" if name == "SIGKILL" else ""
        if name == "SIGABRT" and end.cause:  # a program says why it aborts
            hint = f": {_cause_of(end)}"
        return Failure(end.rank, f"ended by {name}{hint}", repeatable=is_crash)
    if end.code == EXIT_STOPPED:
        # All ranks save and end alike; which one got the signal is not known.
        return Failure(None, "a worker was asked to stop (preemption)", EXIT_STOPPED)
    if end.code == _SSH_FAILED:
        return Failure(end.rank, f"the connection to its host was lost {end.cause}".strip())
    mendable = end.code != 2 and not at_start  # such as a package that is not installed there
    return Failure(end.rank, _cause_of(end), end.code, mendable, repeatable=True)


def _cause_of(end: RankEnd) -> str:
    cause = end.cause.removeprefix("error: ").removeprefix(f"rank {end.rank}: ")
    return cause or f"exit code {end.code}"


@dataclass
class Budget:
    """How often an attempt may fail without progress.

    Attributes:
        allowed: Number of restarts without progress.
        used: Failures since the last progress.
        furthest: The furthest step that any attempt reached.
    """

    allowed: int
    used: int = 0
    furthest: int = 0
    _last: tuple[str, int] | None = None

    def spend(self, failure: Failure, step: int) -> str | None:
        """Counts a failure.

        Args:
            failure: The failure.
            step: The furthest step of the attempt.

        Returns:
            Why no further attempt is made, or None if one is.
        """
        if not failure.mendable:
            return "restarting cannot mend that"
        same = (re.sub(r"0x[0-9a-f]+|\d+", "#", failure.cause), step)
        if failure.repeatable and same == self._last:
            return f"it failed in the same way at step {step} twice"
        self._last = same
        if step > self.furthest:
            self.furthest, self.used = step, 0
        self.used += 1
        if self.used > self.allowed:
            return f"{self.allowed} restarts brought no new step"
        return None


def seconds_of(times: Mapping[str, float]) -> dict[str, float]:
    """Returns how long each phase of a restart took.

    Args:
        times: When, in seconds since the epoch: fault, detected, stopped, joined, restored,
            stepped.

    Returns:
        Seconds: detect, stop, start, restore, first_step, and their total.
    """
    points = ("fault", "detected", "stopped", "joined", "restored", "stepped")
    names = ("detect", "stop", "start", "restore", "first_step")
    pairs = itertools.pairwise(points)
    phases = {
        name: round(max(0.0, times[after] - times[before]), 2)
        for name, (before, after) in zip(names, pairs, strict=True)
    }
    return {**phases, "total": round(times["stepped"] - times["fault"], 2)}
