"""Observes a launched run from outside: the ranks' pages of memory, and the launcher's record."""

import time
from pathlib import Path

import psutil

from tests.launching.launched import LaunchedRun
from tests.launching.processes import Page, page_of, ranks_of

_LOOK_SECONDS = 0.5
"""How often processes are searched; pages are read more often."""


class Observer:
    """The ranks of a run.

    Args:
        out: The run directory.
    """

    def __init__(self, out: Path) -> None:
        self._out = out
        self._ranks: list[psutil.Process] = []
        self._looked = 0.0

    def pages(self) -> dict[int, Page]:
        """Returns what each rank that lives says, by the number of its process."""
        found = {rank.pid: page_of(rank) for rank in self._ranks}
        if time.monotonic() > self._looked + _LOOK_SECONDS:
            self._looked = time.monotonic()
            self._ranks = list(ranks_of(self._out).values())
            found = {rank.pid: page_of(rank) for rank in self._ranks}
        return {pid: page for pid, page in found.items() if page is not None}

    def step(self) -> int:
        """Returns the furthest step of a rank that lives."""
        return max((int(page["step"]) for page in self.pages().values()), default=0)

    def training(self) -> int:
        """Returns the number of ranks that have made a step."""
        return sum(page["stepped"] > 0 for page in self.pages().values())


class Recovery:
    """How a run goes on after a fault that happens now.

    Args:
        observer: The ranks.
        run: Returns the launched run.
    """

    def __init__(self, observer: Observer, run: LaunchedRun) -> None:
        self._observer = observer
        self._before = len(run.restarts())
        pages = observer.pages()
        self._old = set(pages)
        self._reached = max((page["step"] for page in pages.values()), default=0.0)
        self.began = time.time()
        self._gone = 0.0
        self._stepped = 0.0
        self._first = 0.0

    def look(self) -> bool:
        """Looks at the ranks; returns whether other ones than before the fault have made a step."""
        pages = self._observer.pages()
        old = [page for pid, page in pages.items() if pid in self._old]
        self._reached = max([self._reached, *(page["step"] for page in old)])
        if not old and not self._gone:
            self._gone = time.time()
        new = [page for pid, page in pages.items() if pid not in self._old and page["stepped"]]
        if new and not old:
            self._stepped = min(page["stepped"] for page in new)
            self._first = max(page["first"] for page in new)
        return bool(new) and not old

    def row(self, fault: str, run: LaunchedRun, *, by_hand: bool) -> dict[str, object]:
        """Returns a row of the table, once the run goes on.

        Args:
            fault: What happened.
            run: The launched run.
            by_hand: Whether the launcher was ended; the fault is then detected by the ranks, when
                they have ended.
        """
        restarts = run.restarts()[self._before :]
        times = [float(restart["time"]) for restart in restarts if "time" in restart]
        detected = self._gone if by_hand or not times else min(times)
        lost = [int(restart.get("steps_lost", 0)) for restart in restarts]
        return {
            "fault": fault,
            "detected": round(max(0.0, detected - self.began), 2),
            "stepping": round(self._stepped - self.began, 2),
            "lost": max([int(max(0.0, self._reached - self._first)), *lost]),
            "restarts": len(restarts),
            "cause": restarts[0]["cause"] if restarts else "",
        }
