"""Records stop signals, so that a run can finish its step and save."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


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

        def record(number: int, frame: FrameType | None) -> None:
            self.name = signal.Signals(number).name
            for other, handler in previous.items():
                signal.signal(other, handler)

        for number in previous:
            signal.signal(number, record)
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
