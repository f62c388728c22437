"""Finds out, while a run goes on, whether more workers could take part."""

import threading
from collections.abc import Callable, Sequence

from distcnn.launching.hosts import Host, count_workers

ASK_SECONDS = 5.0
"""How often hosts are asked for."""


class Growth:
    """Asks for hosts in a thread, and says when the run should stop to take more workers in.

    Args:
        more: Returns the workers that could run, if they are more than those that do.
        workers: The number of workers that run.

    Attributes:
        asked: Whether the run was told to stop.
        found: What was found, in words; empty before that.
    """

    def __init__(self, more: Callable[[], Sequence[Host]], workers: int) -> None:
        self._more = more
        self._workers = workers
        self._over = threading.Event()
        self._epoch: int | None = None
        self.asked = False
        self.found = ""
        threading.Thread(target=self._ask, daemon=True).start()

    def is_due(self, epoch: int, *, started: bool) -> bool:
        """Returns whether the run should stop now: once, when an epoch ends after the discovery.

        Args:
            epoch: The epoch that the run is in.
            started: Whether it has made a step.
        """
        if not self.found or self.asked or not started:
            return False
        if self._epoch is None:
            self._epoch = epoch
        self.asked = epoch > self._epoch
        return self.asked

    def close(self) -> None:
        """Ends the thread."""
        self._over.set()

    def _ask(self) -> None:
        while not self._over.wait(ASK_SECONDS) and not self.asked:
            count = count_workers(self._more())
            self.found = f"{count} workers could run instead of {self._workers}" if count else ""
