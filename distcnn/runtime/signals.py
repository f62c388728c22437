"""Records stop signals, so that a run can finish its step and save."""

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)

REPEAT_SECONDS = 0.5
"""A signal this soon after another counts as the same one: `timeout` sends it to the process and to
its group, and launchers may pass on what the terminal has sent already."""


class StopRequest:
    """Records a SIGINT, SIGTERM or SIGUSR1 (Slurm's warning before the time limit).

    Attributes:
        name: Name of the received signal, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the first signal; a second one gets the original handler."""
        previous = {number: signal.getsignal(number) for number in SIGNALS}
        first = float("inf")

        def restore() -> None:
            for number, handler in previous.items():
                signal.signal(number, handler)

        def record(number: int, frame: FrameType | None) -> None:
            nonlocal first
            if self.name is None:
                self.name, first = signal.Signals(number).name, time.monotonic()
            elif time.monotonic() > first + REPEAT_SECONDS:
                restore()
                signal.raise_signal(number)

        for number in previous:
            signal.signal(number, record)
        try:
            yield
        finally:
            restore()
