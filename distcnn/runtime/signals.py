"""Stopping on a signal: note it, finish the step, save."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Whether SIGINT, SIGTERM or SIGUSR1 (Slurm's warning before the time limit) asks to stop.

    Attributes:
        name: Name of the signal, or None.
    """

    def __init__(self) -> None:
        self.name: str | None = None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Catches the first signal; a second one ends the process at once, as without it."""
        before = {number: signal.getsignal(number) for number in SIGNALS}

        def note(number: int, frame: FrameType | None) -> None:
            self.name = signal.Signals(number).name
            for other, handler in before.items():
                signal.signal(other, handler)

        for number in before:
            signal.signal(number, note)
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
