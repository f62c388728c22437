"""Files of paths and labels: rows of a CSV or JSON-lines file, and which column means what."""

import csv
import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distcnn.config import DataConfig
from distcnn.config.recipe import nearest
from distcnn.data.image_file import EXTENSIONS
from distcnn.errors import DataError
from distcnn.runtime.files import open_regular, parse_json
from distcnn.runtime.text import printable

_NAMES: dict[str, tuple[str, ...]] = {
    "path": (
        *("path", "filepath", "file_path", "file", "filename", "file_name", "image", "image_path"),
        *("img", "img_path", "image_name", "image_id"),
    ),
    "label": (
        *("label", "labels", "class", "classes", "class_name", "category", "categories"),
        *("tag", "tags", "target", "value"),
    ),
    "split": ("split", "set", "subset", "partition"),
}
"""Names of columns by what they hold, in lower case; for paths, the first one found counts."""


@dataclass(frozen=True)
class LabelRows:
    """The rows of a file of labels.

    Attributes:
        path: The file.
        path_column: Name of the column of paths.
        label_columns: Names of the columns of labels.
        split_column: Name of the column of splits, or None.
        rows: Line number and values by column of each row. Values of a CSV file are text.
        delimiter: What divides the cells of a CSV file; empty for JSON lines.
    """

    path: Path
    path_column: str
    label_columns: tuple[str, ...]
    split_column: str | None
    rows: list[tuple[int, dict[str, Any]]]
    delimiter: str


def read_label_file(config: DataConfig) -> LabelRows:
    """Reads the file `data.labels`.

    Raises:
        DataError: It cannot be read, holds no rows, or its columns are not known.
    """
    assert config.labels is not None
    path = Path(config.labels)
    text = _read_text(path)
    first = text.lstrip()[:1]
    if not first:
        raise DataError(f"data.labels {printable(path)} is empty; expected a row for each image")
    if first in "{[":
        delimiter, rows = "", list(_json_rows(path, text))
    else:
        delimiter = _delimiter_of(path, text)
        rows = list(_csv_rows(path, text, delimiter))
    if not rows:
        raise DataError(
            f"data.labels {printable(path)} has a header, but no rows; expected one for each image"
        )
    columns = _Columns(path, list(rows[0][1]), rows[0][1], config)
    return LabelRows(path, columns.path, columns.labels, columns.split, rows, delimiter)


def _read_text(path: Path) -> str:
    try:
        with open_regular(path) as file:
            content: bytes = file.read()
    except OSError as error:
        raise DataError(
            f"data.labels {printable(path)} cannot be read: {error.strerror}; expected a CSV or "
            "JSON-lines file of paths and labels"
        ) from None
    if b"\0" in content:
        raise DataError(
            f"data.labels {printable(path)} is not text; expected a CSV or JSON-lines file in UTF-8"
        )
    return content.decode("utf-8-sig", "surrogateescape")  # names of files need not be UTF-8


def _json_rows(path: Path, text: str) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = parse_json(line)
        except ValueError as error:
            reason = f"is not JSON ({error})"
        else:
            if isinstance(row, dict):
                yield number, row
                continue
            reason = f"is a {type(row).__name__}"
        raise DataError(
            f"{printable(path)}, line {number}, {reason}; expected one JSON object a line, such as "
            '{"path": "a.jpg", "label": "cat"}'
        )


def _delimiter_of(path: Path, text: str) -> str:
    header = text.lstrip().partition("\n")[0]
    if path.suffix.lower() == ".tsv":
        return "\t"
    return max(",;\t", key=header.count)


def _csv_rows(path: Path, text: str, delimiter: str) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    number = 1
    try:
        for cells in reader:
            start, number = number, reader.line_num + 1
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                continue
            if not columns:
                columns = _header(path, cells)
                if columns == cells:
                    continue
            if len(cells) != len(columns):
                raise DataError(
                    f"{printable(path)}, line {start}, has {len(cells)} cells; expected "
                    f"{len(columns)}, as in the first line; put quotes around cells that contain "
                    f"{delimiter!r}"
                )
            yield start, dict(zip(columns, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{printable(path)}, line {number}, is not CSV: {error}") from None


def _header(path: Path, cells: list[str]) -> list[str]:
    """Returns the names of the columns: the first line, or their numbers if it names an image."""
    if any(_is_image(cell) for cell in cells):
        return [str(number) for number in range(1, len(cells) + 1)]
    repeated = next((cell for cell in cells if cells.count(cell) > 1), None)
    if repeated is not None:
        raise DataError(
            f"{printable(path)} has several columns named {printable(repeated)!r}; rename them"
        )
    return cells


def _is_image(value: Any) -> bool:
    return isinstance(value, str) and os.path.splitext(value)[1].lower() in EXTENSIONS  # noqa: PTH122


class _Columns:
    """Finds out which column of a file of labels means what.

    Args:
        file: The file.
        columns: The names of its columns.
        first: Its first row.
        config: Names columns, or leaves them to be found.

    Attributes:
        path: The column of paths.
        split: The column of splits, or None.
        labels: The columns of labels.
    """

    def __init__(
        self, file: Path, columns: list[str], first: dict[str, Any], config: DataConfig
    ) -> None:
        self._file = file
        self._columns = columns
        self.split = self._named("split_column", config.split_column) or self._called("split")
        given = (config.label_column or "").split(",") if config.label_column else []
        self.labels = tuple(self._named("label_column", name.strip()) or "" for name in given)
        images = [name for name in columns if _is_image(first[name])]
        self.path = (
            self._named("path_column", config.path_column)
            or self._called("path")
            or (images[0] if len(images) == 1 else None)
            or self._fail("path_column", "paths")
        )
        if not self.labels:
            rest = [name for name in columns if name not in (self.path, self.split)]
            only = rest[0] if len(rest) == 1 else None
            self.labels = (self._called("label") or only or self._fail("label_column", "labels"),)

    def _named(self, key: str, name: str | None) -> str | None:
        if name is None or name in self._columns:
            return name
        raise DataError(
            f"data.{key} is {name!r}, but {printable(self._file)} has the columns "
            f"{self._shown()}{nearest(name, self._columns)}"
        )

    def _called(self, kind: str) -> str | None:
        by_name = {name.lower(): name for name in self._columns}
        found = [by_name[name] for name in _NAMES[kind] if name in by_name]
        if len(found) > 1 and kind != "path":
            self._fail(f"{kind}_column", f"{kind}s")
        return found[0] if found else None

    def _fail(self, key: str, what: str) -> str:
        raise DataError(
            f"{printable(self._file)} has the columns {self._shown()}; which of them holds the "
            f"{what} is not clear; name it by --data.{key}"
        )

    def _shown(self) -> str:
        return ", ".join(printable(name) for name in self._columns[:20])
