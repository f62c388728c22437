"""Sums the rows of healing campaigns up, as a table of the documentation."""

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any


def print_table(files: Sequence[Path]) -> None:
    """Prints a row for each fault, and one for all.

    Args:
        files: Files with one JSON object a line, as `--json` writes them.
    """
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    print("| fault | number | detected after | stepping again after | steps lost |")
    print("|---|---|---|---|---|")
    for name in sorted({row["fault"] for row in rows}):
        print(_line(name, [row for row in rows if row["fault"] == name]))
    print(_line("all", rows))
    loads = [row["load"] for row in rows if "load" in row]
    if loads:
        print(f"\nload {median(loads):.1f}, at most {max(loads):.1f}")


def _line(name: str, rows: Sequence[dict[str, Any]]) -> str:
    cells = [name, str(len(rows))]
    for key, unit, digits in (("detected", " s", 1), ("stepping", " s", 1), ("lost", "", 0)):
        values = [row[key] for row in rows]
        cells.append(f"{median(values):.{digits}f}, {max(values):.{digits}f}{unit}")
    return f"| {' | '.join(cells)} |"
