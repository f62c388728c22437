"""Writes files in a thread, so that whatever produces them goes on meanwhile."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, wait


class BackgroundWriter:
    """Runs at most one write at a time, in a thread of its own.

    The thread does not keep the process alive: `wait` before it ends.
    """

    def __init__(self) -> None:
        self._in_flight: Future[None] | None = None

    @property
    def is_busy(self) -> bool:
        """Whether something is being written."""
        return self._in_flight is not None and not self._in_flight.done()

    def start(self, write: Callable[[], object]) -> None:
        """Starts a write, after waiting for the one before.

        Args:
            write: The write; what it needs must not change any more.

        Raises:
            Exception: What the write before has raised; the new one is then not started.
        """
        self.wait()
        in_flight: Future[None] = Future()
        threading.Thread(target=_run, args=(write, in_flight), daemon=True).start()
        self._in_flight = in_flight

    def wait(self) -> None:
        """Waits until nothing is being written; a signal handler that raises ends the wait.

        Raises:
            Exception: What the write has raised, once.
        """
        if self._in_flight is None:
            return
        wait([self._in_flight])
        ended, self._in_flight = self._in_flight, None
        ended.result()


def _run(write: Callable[[], object], in_flight: "Future[None]") -> None:
    try:
        write()
    except BaseException as error:  # raised by `wait`
        in_flight.set_exception(error)
    else:
        in_flight.set_result(None)
