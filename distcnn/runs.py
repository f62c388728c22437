"""The command `python -m distcnn.runs`: lists runs, and what they differ in."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from distcnn.cli.command import run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.inference.plots import curves_figure, to_png
from distcnn.runtime.text import decimals, printable
from distcnn.storage.run_list import RunRecord, differing_keys, find_runs

_SHOWN = ("val_accuracy", "test_accuracy", "val_loss", "train_seconds")


def main(arguments: Sequence[str]) -> int:
    """Prints a table of runs, the best first, and draws their curves."""
    parser = Parser("distcnn.runs", "Lists runs: what they reached, and which settings differ.")
    parser.add_argument(
        "folders", nargs="*", help="Run directories, or folders that hold them. Default: runs."
    )
    parser.add_argument(
        "--metric",
        default="val_accuracy",
        help="What to sort by and to draw. The least is best if its name holds loss.",
    )
    parser.add_argument("--plot", help="PNG file for the metric of each run by step.")
    parser.add_argument("--json", help="JSON file for the results.")
    options = parser.parse_args(list(arguments))
    require_writable("--plot", options.plot)
    require_writable("--json", options.json)
    runs = find_runs([Path(folder) for folder in options.folders or ["runs"]])
    metric = options.metric
    runs.sort(key=lambda run: _rank(run, metric))
    keys = differing_keys(runs) if len(runs) > 1 else []
    _print(runs, keys, list(dict.fromkeys((metric, *_SHOWN))))
    if options.plot is not None:
        curves = {str(run.path): run.curve(metric) for run in runs}
        Path(options.plot).write_bytes(to_png(curves_figure(curves, metric)))
        print(f"{metric} by step as a picture: {printable(options.plot)}")
    content = [_as_dict(run, keys, metric) for run in runs]
    write_json(options.json, content)
    return 0


def _rank(run: RunRecord, metric: str) -> float:
    value = run.value(metric)
    if value is None or not math.isfinite(value):
        return math.inf
    return value if "loss" in metric else -value


def _as_dict(run: RunRecord, keys: Sequence[str], metric: str) -> dict[str, Any]:
    return {
        "path": str(run.path),
        "state": run.state,
        metric: run.value(metric),
        "summary": run.summary,
        "settings": {key: run.settings.get(key) for key in keys},
    }


def _print(runs: Sequence[RunRecord], keys: Sequence[str], metrics: Sequence[str]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    shown = [name for name in metrics if any(run.value(name) is not None for run in runs)]
    table = Table("run", "state", *shown, *keys)
    for column in table.columns[2 : 2 + len(shown)]:
        column.justify = "right"
    for run in runs:
        values = (run.value(name) for name in shown)
        settings = (printable(str(run.settings.get(key))) for key in keys)
        numbers = ("" if value is None else decimals(value) for value in values)
        table.add_row(printable(run.path), run.state, *numbers, *settings)
    console.print(table)


if __name__ == "__main__":
    run_command(main)
