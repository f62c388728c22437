"""Saves the state of a run while its training goes on."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

from distcnn.distribute.base import Backend
from distcnn.storage.background import BackgroundWriter

log = logging.getLogger("distcnn")

_WORTH_MENTIONING_SECONDS = 1.0

Write = Callable[[], object]
"""Writes a state that was copied before."""


class BackgroundSaving:
    """Copies the state at a step, and lets a thread of the chief write it.

    One save is in flight at most: the next one waits for it, so that the newest checkpoint is never
    more than one save behind. If a write fails, the next `save` or `wait` raises its error in all
    processes.

    Args:
        backend: The processes of the run.

    Attributes:
        count: Number of saves on the chief; 0 elsewhere.
        stall_seconds: How long the training has stood still for them: for copies of the state, and
            for writes that had not ended.
        write_seconds: How long the writes that have ended took.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._writer = BackgroundWriter()
        self.count = 0
        self.stall_seconds = 0.0
        self.write_seconds = 0.0

    def save(self, copy: Callable[[], Write]) -> float:
        """Saves the state as it is now; called in all processes together.

        Args:
            copy: Is called on the chief when nothing is in flight. Returns what writes the state,
                which must not share memory with anything that changes before the next call.

        Returns:
            For how many seconds the training stood still; 0 on the other ranks.
        """
        before = self.stall_seconds
        self._backend.run_on_chief(lambda: self._begin(copy))
        return self.stall_seconds - before

    def prepare(self, work: Callable[[], object]) -> None:
        """Does what the first save needs, on the chief, while training goes on."""
        self._writer.start(work)

    def wait(self) -> None:
        """Waits until everything is written; called in all processes together."""
        self._backend.run_on_chief(self._wait)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Leaves nothing in flight at the end of the context; entered in all processes together."""
        try:
            yield
        except BaseException:
            self._wait_alone()
            raise
        self.wait()

    def report(self) -> None:
        """Logs for how long the training has stood still, if that is worth mentioning."""
        if self.stall_seconds >= _WORTH_MENTIONING_SECONDS:
            log.info(
                "checkpoints     training waited %.1f s for %d, which took %.1f s to write",
                self.stall_seconds,
                self.count,
                self.write_seconds,
            )

    def _wait_alone(self) -> None:
        """Waits in this process alone, as the other ones may have ended."""
        try:
            self._wait()
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            log.warning("warning: %s", reason)

    def _begin(self, copy: Callable[[], Write]) -> None:
        self._wait()  # first, so that there are never two copies
        began = time.perf_counter()
        write = copy()
        self._writer.start(lambda: self._timed(write))
        seconds = time.perf_counter() - began
        self.count += 1
        self.stall_seconds += seconds
        log.debug("copied the state in %.3f s", seconds)

    def _wait(self) -> None:
        began = time.perf_counter()
        try:
            self._writer.wait()
        finally:
            self.stall_seconds += time.perf_counter() - began

    def _timed(self, write: Write) -> None:
        began = time.perf_counter()
        write()
        seconds = time.perf_counter() - began
        self.write_seconds += seconds
        log.debug("wrote the state in %.3f s", seconds)
