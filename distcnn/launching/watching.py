"""Ranks that hang: suspended, silent, or without a step for too long."""

from dataclasses import dataclass

from distcnn.launching.attempt import Attempt
from distcnn.launching.ends import Failure

SUSPENDED_SECONDS = 2.0
"""How long a rank may be suspended."""

SILENT_SECONDS = 12.0
"""How long the process that reports on a rank may be silent; it reports every half second."""

START_FACTOR = 10
"""How many times as long as a step the start of the ranks may take."""


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
    # All wait for one; which one is not known, but the one with the fewest steps is behind.
    rank = min(running, key=lambda each: running[each].step)
    what = "made no step" if begun else "made no first step"
    return Failure(rank, f"{what} for {limit:g} s (--stall)", since=moved)
