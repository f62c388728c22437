"""Lets all ranks stop at the same step when one of them has received a signal."""

import time

import numpy as np

from distcnn.distribute.base import Backend
from distcnn.runtime.signals import StopRequest

_SECONDS_BETWEEN_VOTES = 1.0
_MOST_EXECUTIONS_BETWEEN_VOTES = 256


class StopVote:
    """Lets all ranks agree to stop, about once a second.

    Args:
        backend: Adds up the votes.
        stop: The signal that this process has received.
    """

    def __init__(self, backend: Backend, stop: StopRequest) -> None:
        self._backend = backend
        self._stop = stop
        self._interval = 1
        self._waited = 0
        self._since = time.monotonic()

    def after_execution(self) -> bool:
        """Returns whether all stop after this execution."""
        if self._backend.size == 1:
            return self._stop.name is not None
        self._waited += 1
        return self._waited >= self._interval and self.now()

    def now(self) -> bool:
        """Returns whether any rank has received a signal; called in all processes together."""
        seconds = time.monotonic() - self._since
        own = np.array([self._stop.name is not None, seconds], np.float64)
        votes, total = self._backend.sum(own)
        each = total / self._backend.size / max(self._waited, 1)
        wanted = int(_SECONDS_BETWEEN_VOTES / max(each, 1e-6))
        self._interval = min(max(wanted, 1), _MOST_EXECUTIONS_BETWEEN_VOTES)
        self._waited, self._since = 0, time.monotonic()
        return bool(votes > 0)
