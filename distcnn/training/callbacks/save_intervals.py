"""When to save inside an epoch: every so many steps, or every so many seconds."""

import time
from collections.abc import Callable

import numpy as np

from distcnn.distribute.base import Backend

_FIRST_STEPS = 10
"""After how many steps the chief first looks at its clock."""


class SaveIntervals:
    """Says at which steps a checkpoint is due, in all processes alike.

    For an interval in seconds the chief looks at its clock at steps that all processes know, and
    says when it will look again: when half of the rest has passed, at the speed so far. So the
    processes exchange a number some ten times in an interval, whatever the speed of a step.

    Args:
        backend: The processes of the run.
        steps: Steps between saves; 0 for none.
        seconds: Seconds between saves; 0 for none.
        step: The step at which the run begins.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        backend: Backend,
        steps: int,
        seconds: float,
        step: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._backend = backend
        self._steps = steps
        self._seconds = seconds
        self._clock = clock
        self._began: float | None = None
        self._last = self._since = step
        self._look_at = step + _FIRST_STEPS

    def is_due(self, step: int) -> bool:
        """Returns whether a checkpoint is due; called in all processes after each execution.

        Args:
            step: The number of global steps done.
        """
        before, self._last = self._last, step
        if self._steps and step // self._steps > before // self._steps:
            return True
        if not self._seconds:
            return False
        if self._began is None:  # not when the first step, which compiles, began
            self._began, self._since = self._clock(), step
        if step < self._look_at:
            return False
        left = self._seconds - (self._clock() - self._began)
        answer = self._backend.broadcast(np.array([float(left <= 0), self._steps_in(left, step)]))
        self._look_at = step + int(answer[1])
        return bool(answer[0])

    def saved(self, step: int) -> None:
        """Begins a new interval; called in all processes when a state is saved.

        Args:
            step: The number of global steps done.
        """
        self._last = step
        if self._began is None or not self._seconds:
            return
        ahead = self._steps_in(self._seconds, step)
        self._began, self._since = self._clock(), step
        self._look_at = step + int(self._backend.broadcast(np.array([ahead]))[0])

    def _steps_in(self, seconds: float, step: int) -> float:
        """Returns how many steps fit into half of a time, at the speed since the last save."""
        assert self._began is not None
        per_second = (step - self._since) / max(1e-9, self._clock() - self._began)
        return min(max(1.0, seconds * per_second / 2), 1e9)
