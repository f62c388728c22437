"""The record of restarts: `restarts.jsonl` in the launcher's folder, and a summary of it."""

import contextlib
import json
import logging
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcnn.launching.attempt import Attempt
from distcnn.launching.ends import Failure, seconds_of
from distcnn.launching.hosts import host_of_rank
from distcnn.runtime.files import parse_json, write_json

log = logging.getLogger("distcnn")

FILE = "restarts.jsonl"

Restart = dict[str, Any]
"""One restart: attempt, time (of detection, in seconds since the epoch), cause, rank, host, step (
the last one before the fault); then workers, resumed_at (from which step the next attempt went on),
steps_lost, and seconds by phase. A restart that did not reach a step lacks the latter."""


class RestartLog:
    """Records restarts: each one when the attempt after it makes its first step, or fails.

    Args:
        folder: The launcher's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pending: tuple[Restart, dict[str, float]] | None = None
        self._unwritten: list[Restart] = []

    def begin(
        self, number: int, attempt: Attempt, failure: Failure, fault: float, detected: float
    ) -> None:
        """Begins a restart, when all ranks have stopped.

        Args:
            number: The number of the attempt that is over.
            attempt: That attempt.
            failure: Why it is over.
            fault: When the fault happened, in seconds since the epoch.
            detected: When it was detected.
        """
        self.flush()
        rank = failure.rank
        restart: Restart = {
            "attempt": number,
            "time": round(detected, 2),
            "cause": failure.cause,
            "rank": rank,
            "host": None if rank is None else host_of_rank(attempt.hosts, rank),
            "step": attempt.step,
        }
        times = {"fault": fault, "detected": detected, "stopped": time.time()}
        self._pending = (restart, times)

    def reached(self, attempt: Attempt) -> None:
        """Ends a restart: the attempt after it has made a step."""
        if self._pending is None:
            return
        restart, times = self._pending
        chief = attempt.ranks[0]
        if not chief.stepped and not attempt.is_over():
            return  # its own report, with the other times, comes within half a second
        times |= {"joined": chief.joined, "restored": chief.restored, "stepped": attempt.stepped}
        restart |= {
            "workers": attempt.workers,
            "resumed_at": attempt.first,
            "steps_lost": max(0, restart["step"] - max(0, attempt.first)),
            "seconds": seconds_of(times),
        }
        log.info("launch: %s", describe(restart))
        self.flush()

    def flush(self) -> None:
        """Records a restart that may not have reached a step; later, if the disk is full."""
        if self._pending is not None:
            self._unwritten.append(self._pending[0])
            self._pending = None
        with contextlib.suppress(OSError):
            while self._unwritten:
                append(self._folder, self._unwritten[0])
                self._unwritten.pop(0)

    def add_to_summary(self, out: Path | None) -> dict[str, Any]:
        """Adds what all restarts have cost to `summary.json` of a run, if it has one.

        Args:
            out: The run directory.

        Returns:
            restarts, restart_seconds and steps_lost.
        """
        self.flush()
        known = summarise(read(self._folder) + self._unwritten)
        path = (out or self._folder) / "summary.json"
        try:
            write_json(path, parse_json(path.read_bytes()) | known)
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("warning: the restarts cannot be added to %s: %s", path, error)
        return known


def append(folder: Path, restart: Restart) -> None:
    """Adds a restart to the record; a line that a kill or a full disk has cut stays alone."""
    with (folder / FILE).open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            file.write(b"" if file.read(1) == b"\n" else b"\n")
        file.write(json.dumps(restart).encode() + b"\n")


def read(folder: Path) -> list[Restart]:
    """Returns the restarts of a run, those by earlier launchers included."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    restarts = []
    for line in lines:
        try:
            restarts.append(parse_json(line))
        except ValueError:
            continue  # a line that a kill has cut
    return [restart for restart in restarts if isinstance(restart, dict)]


def summarise(restarts: Sequence[Restart]) -> dict[str, Any]:
    """Returns what `summary.json` says of restarts."""
    seconds = [restart.get("seconds", {}).get("total", 0.0) for restart in restarts]
    return {
        "restarts": len(restarts),
        "restart_seconds": round(sum(seconds), 2),
        "steps_lost": sum(restart.get("steps_lost", 0) for restart in restarts),
    }


def describe(restart: Restart) -> str:
    """Returns a restart that made a step again as one line."""
    seconds = restart["seconds"]
    phases = ", ".join(
        f"{name.replace('_', ' ')} {seconds[name]:.1f}"
        for name in ("detect", "stop", "start", "restore", "first_step")
    )
    return (
        f"training again at step {restart['resumed_at']} with {restart['workers']} "
        f"workers, {seconds['total']:.1f} s after the fault ({phases}); "
        f"{restart['steps_lost']} steps lost"
    )
