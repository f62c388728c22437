"""Finds run directories and reads what they reached."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcnn.config.recipe import settings_of_run
from distcnn.errors import DistcnnError
from distcnn.runtime.files import parse_json

_MOST_DEPTH = 4
_NOT_COMPARED = ("out", "logging.", "checkpoint.")


@dataclass(frozen=True)
class RunRecord:
    """What a run directory says.

    Attributes:
        path: The directory.
        settings: The configuration by dotted key.
        summary: The content of `summary.json`; empty for an unfinished run.
        rows: The rows of `metrics.jsonl`.
    """

    path: Path
    settings: dict[str, Any]
    summary: dict[str, Any]
    rows: list[dict[str, Any]]

    @property
    def state(self) -> str:
        """`finished`, or how far the run is."""
        if self.summary:
            return "finished"
        return f"step {self.rows[-1]['step']}" if self.rows else "no steps"

    def value(self, metric: str) -> float | None:
        """Returns a number of the summary, or of the newest row that holds it."""
        sources = [self.summary, *reversed(self.rows)]
        found = (source.get(metric) for source in sources)
        return next((value for value in found if isinstance(value, int | float)), None)

    def curve(self, metric: str) -> tuple[list[int], list[float]]:
        """Returns the steps that have a metric, and its values."""
        points = [(row["step"], row[metric]) for row in self.rows if row.get(metric) is not None]
        return [step for step, _ in points], [value for _, value in points]


def find_runs(places: Sequence[Path]) -> list[RunRecord]:
    """Returns the runs that some folders are or hold, by path.

    Raises:
        DistcnnError: If a folder does not exist, or there is no run.
    """
    for place in places:
        if not place.is_dir():
            raise DistcnnError(
                f"{place} is no folder; expected a run directory, or a folder that holds some"
            )
    folders = {folder for place in places for folder in _run_folders(place, _MOST_DEPTH)}
    if not folders:
        names = ", ".join(map(str, places))
        raise DistcnnError(f"there is no run in {names}; expected folders with a config.yaml")
    return [_read(folder) for folder in sorted(folders)]


def _run_folders(folder: Path, depth: int) -> Iterator[Path]:
    if (folder / "config.yaml").exists() and (folder / "environment.json").exists():
        yield folder
    elif depth > 0:
        for inner in sorted(folder.iterdir()):
            if inner.is_dir() and not inner.is_symlink():
                yield from _run_folders(inner, depth - 1)


def _read(folder: Path) -> RunRecord:
    summary: dict[str, Any] = {}
    file = folder / "summary.json"
    try:
        if file.exists():
            summary = parse_json(file.read_text(encoding="utf-8"))
        metrics = folder / "metrics.jsonl"
        text = metrics.read_text(encoding="utf-8") if metrics.exists() else ""
        complete = text.rpartition("\n")[0]
        rows = [parse_json(line) for line in complete.splitlines()]
    except (OSError, ValueError) as error:
        raise DistcnnError(f"the run {folder} is damaged: {error}; restore or delete it") from None
    return RunRecord(folder, settings_of_run(folder), summary, rows)


def differing_keys(runs: Sequence[RunRecord]) -> list[str]:
    """Returns the keys of the configuration that are not the same in all runs."""
    keys = dict.fromkeys(key for run in runs for key in run.settings)
    return [
        key
        for key in keys
        if not key.startswith(_NOT_COMPARED)
        and len({json.dumps(run.settings.get(key), default=str) for run in runs}) > 1
    ]
