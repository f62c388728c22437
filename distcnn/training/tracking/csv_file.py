"""The tracker `csv`: all rows of `metrics.jsonl` as the table `metrics.csv`."""

import csv
from pathlib import Path
from typing import Any

from distcnn.runtime.files import parse_json

_FILE = "metrics.csv"


class CsvFile:
    """The table of a run.

    Args:
        folder: The run directory.
    """

    identity = ""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._columns: list[str] = []  # a resumed run drops rows before it logs its first

    def log(self, row: dict[str, Any]) -> None:
        """Appends a row; one with new columns has the table written anew."""
        if set(row) <= set(self._columns):
            self._append([row])
        else:
            self._write_all()

    def _write_all(self) -> None:
        file = self._folder / "metrics.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
        rows = [parse_json(line) for line in lines]
        self._columns = list(dict.fromkeys(key for row in rows for key in row))
        with (self._folder / _FILE).open("w", newline="", encoding="utf-8") as table:
            csv.writer(table).writerow(self._columns)
        self._append(rows)

    def _append(self, rows: list[dict[str, Any]]) -> None:
        with (self._folder / _FILE).open("a", newline="", encoding="utf-8") as table:
            csv.DictWriter(table, self._columns, restval="").writerows(rows)

    def finish(self, summary: dict[str, Any]) -> None:
        """Does nothing: the summary has a file of its own."""

    def close(self) -> None:
        """Does nothing: the file is closed after each row."""


def open_run(folder: Path, config: dict[str, Any], experiment: str, identity: str) -> CsvFile:
    """Returns the table of a run, which is written with the first row."""
    return CsvFile(folder)
