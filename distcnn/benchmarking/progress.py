"""A budget of time, and lines of progress with an estimate of the time left."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger("distcnn")

_PREFIX = "progress: "
_INTERVAL = 10.0
"""Seconds between two lines about the same work."""

_SILENCE = 30.0
"""Seconds without a line after which the last one is repeated."""

Say = Callable[[str], None]


class Budget:
    """A number of seconds.

    Args:
        seconds: The seconds.
        clock: Returns the time in seconds; the default is the same in all processes of a machine.
        start: When they began by the clock, or None for now.

    Attributes:
        seconds: The seconds.
        start: When they began by the clock.
    """

    def __init__(
        self,
        seconds: float,
        clock: Callable[[], float] = time.monotonic,
        start: float | None = None,
    ) -> None:
        self.seconds = seconds
        self.start = clock() if start is None else start
        self._clock = clock

    @property
    def spent(self) -> float:
        """Seconds since the start."""
        return self._clock() - self.start

    @property
    def left(self) -> float:
        """Seconds that are left; negative if more were spent."""
        return self.seconds - self.spent

    def part(self, fraction: float) -> "Budget":
        """Returns a budget of a fraction of what is left."""
        return Budget(max(self.left, 0.0) * fraction, self._clock)


def rounds(what: str, wanted: int, budget: Budget, say: Say) -> Iterator[int]:
    """Yields 0, 1, 2 ... for each round of a measurement, with lines of progress.

    Args:
        what: The measurement, in words.
        wanted: Number of rounds, if the budget suffices.
        budget: Another round starts only if it is likely to end within the budget. The first one
            always starts.
        say: Takes the lines.
    """
    started = said = budget.spent
    for number in range(wanted):
        yield number
        done, now = number + 1, budget.spent
        each = max((now - started) / done, 1e-9)
        possible = int(min(wanted - done, max(budget.left, 0.0) / each))
        if done == wanted:
            return
        if not possible:
            say(f"{what}: {done} of {wanted} rounds fit into the budget")
            return
        if now - said >= _INTERVAL:
            said = now
            say(f"{what}: round {done} of {done + possible}, {possible * each:.0f} s left")


def silent(text: str) -> None:
    """Drops a line, in all ranks but the chief."""


def print_progress(text: str) -> None:
    """Prints a line of progress for the user."""
    log.info("progress        %s", text)


def say_progress(text: str) -> None:
    """Prints a line of progress of a worker, which `Follower` finds in its output."""
    log.info("%s%s", _PREFIX, text)


class Heartbeat:
    """Passes lines on, and repeats the last one if none has followed for a while.

    Args:
        say: Takes the lines.
        clock: Returns the time in seconds.
    """

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say = say
        self._clock = clock
        self._last = ""
        self._first_time = self._time = clock()

    def line(self, text: str) -> None:
        """Passes a line on."""
        self._say(text)
        self._last, self._first_time = text, self._clock()
        self._time = self._first_time

    def beat(self) -> None:
        """Repeats the last line if it is old."""
        now = self._clock()
        if self._last and now - self._time >= _SILENCE:
            self._time = now
            self._say(f"{self._last} ... {now - self._first_time:.0f} s")


class Follower:
    """Finds the lines of progress in the output of workers while they run.

    Args:
        file: The file of their output.
        heartbeat: Takes the lines.
    """

    def __init__(self, file: Path, heartbeat: Heartbeat) -> None:
        self._file = file
        self._heartbeat = heartbeat
        self._position = 0

    def read(self) -> None:
        """Passes on the lines that are new and complete."""
        with self._file.open("rb") as file:
            file.seek(self._position)
            new, newline, _ = file.read().rpartition(b"\n")
        self._position += len(new) + len(newline)
        for line in new.decode(errors="replace").splitlines():
            _, found, text = line.partition(_PREFIX)
            if found:
                self._heartbeat.line(text)
        self._heartbeat.beat()
