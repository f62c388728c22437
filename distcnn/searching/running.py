"""One trial: an ordinary run in a process of its own, whose metrics are read while it trains."""

import contextlib
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

from distcnn.errors import DistcnnError
from distcnn.runtime.files import parse_json
from distcnn.runtime.rank_process import die_with_parent
from distcnn.searching.slots import Slot

_KILL_SECONDS = 120.0
"""How long a stopped run may take to save and end."""


class TrialRun:
    """The process of a trial.

    Args:
        folder: The run directory.
        command: The command line.
        log: File for its output, which is appended to.
        slot: The cores and GPUs that it runs on.
    """

    def __init__(self, folder: Path, command: list[str], log: Path, slot: Slot) -> None:
        self.folder, self.log, self.slot = folder, log, slot
        self.started = time.monotonic()
        self._stopped: float | None = None
        self._rows_seen = 0
        die = die_with_parent()

        def prepare() -> None:
            os.sched_setaffinity(0, slot.cores)
            if die is not None:
                die()

        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=os.environ | slot.environment,
                start_new_session=True,
                preexec_fn=prepare,
            )

    def new_values(self, metric: str) -> list[tuple[int, float]]:
        """Returns the epochs that have ended since the last call, with the metric of each."""
        try:
            content = (self.folder / "metrics.jsonl").read_bytes()
        except OSError:
            return []
        rows = content.rpartition(b"\n")[0].splitlines()
        first = self._rows_seen if self._rows_seen <= len(rows) else 0
        self._rows_seen = len(rows)
        found = []
        for row in rows[first:]:
            with contextlib.suppress(ValueError):
                values = parse_json(row)
                if "val_loss" in values and values.get(metric) is not None:
                    found.append((int(values["epoch"]), float(values[metric])))
        return found

    def exit_code(self) -> int | None:
        """Returns the exit code of the process, or None while it runs."""
        if self._stopped is not None and time.monotonic() - self._stopped > _KILL_SECONDS:
            self._signal(signal.SIGKILL)
        return self._process.poll()

    def stop(self) -> None:
        """Lets the run save and end."""
        if self._stopped is None:
            self._stopped = time.monotonic()
            self._signal(signal.SIGTERM)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGKILL:
                os.killpg(self._process.pid, number)
            else:
                self._process.send_signal(number)

    def summary(self) -> dict[str, Any] | None:
        """Returns the summary of a finished run, or None."""
        return read_summary(self.folder)

    def last_line(self) -> str:
        """Returns the last line of the output, which names an error."""
        text = self.log.read_text(encoding="utf-8", errors="replace")
        lines = [line for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if "error: " in line]
        return (errors or lines or ["no output"])[-1]


def read_summary(folder: Path) -> dict[str, Any] | None:
    """Returns the summary of a finished run, or None if it is not finished.

    Raises:
        DistcnnError: If it is damaged.
    """
    file = folder / "summary.json"
    try:
        content: dict[str, Any] = parse_json(file.read_text(encoding="utf-8"))
    except OSError:
        return None
    except ValueError as error:
        raise DistcnnError(f"{file} is damaged: {error}; delete the trial's folder") from None
    return content
