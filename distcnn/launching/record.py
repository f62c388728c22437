"""The record of restarts: `restarts.jsonl` in the launcher's folder, and a summary of it."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcnn.runtime.files import write_json

FILE = "restarts.jsonl"

Restart = dict[str, Any]
"""One restart: attempt, cause, rank, host, workers, step (the last one before the fault),
resumed_at (the step from which the next attempt went on), steps_lost, and seconds by phase. A
restart that did not reach a step has no seconds."""


def append(folder: Path, restart: Restart) -> None:
    """Adds a restart to the record."""
    with (folder / FILE).open("a", encoding="utf-8") as file:
        file.write(json.dumps(restart) + "\n")


def read(folder: Path) -> list[Restart]:
    """Returns the restarts of a run, those by earlier launchers included."""
    try:
        lines = (folder / FILE).read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    restarts = []
    for line in lines:
        try:
            restarts.append(json.loads(line))
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


def add_to_summary(out: Path, restarts: Sequence[Restart]) -> None:
    """Adds the summary of restarts to `summary.json` of a run, if it has one."""
    path = out / "summary.json"
    try:
        summary = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return
    write_json(path, summary | summarise(restarts))


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
