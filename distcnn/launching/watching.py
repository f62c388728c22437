"""Watches an attempt: finds ranks that hang, and stops the ranks where that is necessary."""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from distcnn.launching.attempt import Attempt
from distcnn.launching.ends import Failure
from distcnn.launching.growth import Growth

log = logging.getLogger("distcnn")

SUSPENDED_SECONDS = 2.0
"""How long a rank may be suspended."""

SILENT_SECONDS = 4.0
"""How long the process that reports on a rank may be silent; it reports every half second."""

START_FACTOR = 10
"""How many times as long as a step the start of the ranks may take."""

KILL_SECONDS = 2.0
"""How long the other ranks may go on after one was killed: they may be writing a checkpoint."""

_POLL_SECONDS = 0.05
_STARVED_SECONDS = 1.0
"""A pause this long means that this process did not run, and could not hear anybody."""


@dataclass(frozen=True)
class Limits:
    """When a rank counts as hanging.

    Attributes:
        stall: Seconds without a step; 0 for any time.
    """

    stall: float = 600.0


def find_hanging(attempt: Attempt, limits: Limits, now: float) -> Failure | None:
    """Returns the failure of a rank that hangs, or None.

    Args:
        attempt: The running attempt.
        limits: When a rank counts as hanging.
        now: The time, in seconds since the epoch.
    """
    running = {rank: state for rank, state in attempt.ranks.items() if state.end is None}
    for rank, state in running.items():
        if state.suspended and now - state.runs > SUSPENDED_SECONDS and now - state.heard < 2:
            return Failure(rank, "it was suspended (kill -STOP)", since=state.runs)
        if state.heard and now - state.heard > SILENT_SECONDS:
            cause = f"nothing was heard of it for {SILENT_SECONDS:g} s"
            return Failure(rank, cause, since=state.heard)
    if not limits.stall or not running:
        return None
    moved = max(attempt.began, *(state.moved for state in attempt.ranks.values()))
    begun = attempt.stepped > 0
    limit = limits.stall if begun else limits.stall * START_FACTOR
    if now - moved <= limit:
        return None
    # All wait for one: the one with the fewest steps, if it is behind.
    steps = sorted(state.step for state in running.values())
    behind = [rank for rank, state in running.items() if state.step < steps[-1]]
    late = behind[0] if len(behind) == 1 else None
    what = "made no step" if begun else "made no first step"
    return Failure(late, f"{what} for {limit:g} s (--stall)", since=moved)


class Watch:
    """Waits until an attempt is over.

    Args:
        attempt: The attempt.
        limits: When a rank counts as hanging.
        growth: Whether more workers could take part.
        signals: The signals that this process got, which ask to stop, and later to kill.

    Attributes:
        hanging: The failure of a rank that hangs, or None.
        grown: For which workers the ranks were asked to stop, in words, or nothing.
        detected: When a fault was detected, in seconds since the epoch; 0 if there was none.
    """

    def __init__(
        self, attempt: Attempt, limits: Limits, growth: Growth, signals: Sequence[str]
    ) -> None:
        self._attempt = attempt
        self._limits = limits
        self._growth = growth
        self._signals = signals
        self._given = 0
        self._killed = False
        self.hanging: Failure | None = None
        self.grown = ""
        self.detected = 0.0

    def wait(self, stepped: Callable[[], None]) -> None:
        """Waits until the attempt is over.

        Args:
            stepped: Called all the time after the first step.
        """
        looked = time.time()
        while not self._attempt.is_over():
            now = time.time()
            if now - looked > _STARVED_SECONDS:
                for state in self._attempt.ranks.values():
                    state.heard += now - looked if state.heard else 0.0
            looked = now
            if self._attempt.stepped:
                stepped()
            self._act(now)
            time.sleep(_POLL_SECONDS)
        if self._attempt.stepped:
            stepped()
        self._growth.close()

    def _act(self, now: float) -> None:
        attempt = self._attempt
        while self._given < min(2, len(self._signals)):
            self._given += 1
            attempt.order(b"t" if self._given == 1 else b"k")
        ended = [end for end in attempt.ends if end.code]
        if ended:
            self.detected = self.detected or min(end.time for end in ended)
            lost = any(end.code > 128 for end in ended)
            if lost and not self._given and now > self.detected + KILL_SECONDS:
                self._kill()
            return
        if self._given or self.hanging is not None:
            return
        self.hanging = find_hanging(attempt, self._limits, now)
        if self.hanging is not None:
            self.detected = now
            self._kill()
        elif self._growth.is_due(attempt.epoch, started=attempt.stepped > 0):
            self.grown = self._growth.found
            log.info("launch: %s; saving, to go on with them", self.grown)
            attempt.order(b"t")

    def _kill(self) -> None:
        if not self._killed:
            self._killed = True
            self._attempt.order(b"k")
