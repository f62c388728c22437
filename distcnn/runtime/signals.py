"""Records what asks a run to stop, so that it can finish its step and save."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

from distcnn.runtime import notice
from distcnn.runtime.membership import Cluster

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""The signals on which a launcher stops its ranks."""

REPEAT_SECONDS = 0.5
"""A signal this soon after another counts as the same one: `timeout` sends it to the process and to
its group, and launchers may pass on what the terminal has sent already."""

_NOTICE = "the notice that its host will be taken away"


def stop_request(own_signal: str, notice: str | None, cluster: Cluster) -> "StopRequest":
    """Returns a request of which only the first process of each host asks for notices."""
    return StopRequest(own_signal, notice if cluster.local_rank == 0 else None)


class StopRequest:
    """Records a SIGINT, a SIGTERM, the signal of the configuration, or the notice of a host.

    Args:
        own_signal: Name of a further signal, such as Slurm's before the time limit.
        notice: The command that tells whether this host is about to be taken away; None for none.

    Attributes:
        name: Name of the received signal, or None.
    """

    def __init__(self, own_signal: str = "SIGUSR1", notice: str | None = None) -> None:
        self.name: str | None = None
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.Signals[own_signal])
        self._notice = notice

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the first signal; a second one gets the original handler."""
        previous = {number: signal.getsignal(number) for number in self._numbers}
        first = float("inf")

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def record(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if first == float("inf"):
                first = time.monotonic()
                self._ask(signal.Signals(number).name)
            elif time.monotonic() > first + REPEAT_SECONDS:
                restore()
                signal.raise_signal(number)

        for number in previous:
            signal.signal(number, record)
        try:
            with self._watching():
                yield
        finally:
            restore()

    def _ask(self, name: str) -> None:
        self.name = self.name or name

    @contextlib.contextmanager
    def _watching(self) -> Iterator[None]:
        if self._notice is None:
            yield
            return
        ended = threading.Event()
        arguments = (self._notice, lambda: self._ask(_NOTICE), ended)
        threading.Thread(target=notice.watch, args=arguments, daemon=True).start()
        try:
            yield
        finally:
            ended.set()
