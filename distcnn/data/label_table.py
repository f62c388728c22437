"""Labelled images from a file: the labels as arrays, and every bad row by its line."""

import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.file_list import FileList
from distcnn.data.folder_layout import SPELLINGS
from distcnn.data.label_file import LabelRows, read_label_file
from distcnn.data.undecodable import name_all
from distcnn.errors import DataError
from distcnn.runtime.text import printable, valid_unicode

_logger = logging.getLogger("distcnn")

_SEPARATORS = ("|", ";", ",", " ")
_TRUTH = {"0": False, "1": True, "false": False, "true": True}


@dataclass(frozen=True)
class LabelTable:
    """Labelled images, in the order of their file.

    Attributes:
        task: What the labels are.
        classes: Names of the classes, or of the numbers.
        files: The image files.
        labels: int64 `(images,)`, bool `(images, classes)` or float32 `(images, numbers)`.
        splits: The split of each image, by the keys of `SPELLINGS`; None if the file has none.
        lines: The line of each image.
        reading: How the file was read, for the log.
    """

    task: Task
    classes: tuple[str, ...]
    files: FileList
    labels: np.ndarray
    splits: np.ndarray | None
    lines: np.ndarray
    reading: str


@dataclass
class _Row:
    line: int
    name: str
    label: Any
    split: str | None


def read_label_table(config: DataConfig, cache: Path) -> LabelTable:
    """Reads the file `data.labels`.

    Args:
        config: The data section.
        cache: Where to write the bad rows if they are many.

    Raises:
        DataError: It cannot be read, or rows of it cannot be used and are not to be skipped.
    """
    source = read_label_file(config)
    reader = _LabelReader(source, config)
    bad: dict[int, str] = {}
    rows = _joined(_parsed(source, reader, bad), reader, bad)
    root = Path(config.dir) if config.dir is not None else source.path.parent
    files = _files_of(root, [row.name for row in rows])
    for row, (size, number) in zip(rows, files.states.tolist(), strict=True):
        if size < 0:
            bad[row.line] = f"{printable(row.name)} cannot be read: {os.strerror(number)}"
    kept = np.array([i for i, row in enumerate(rows) if row.line not in bad], np.int64)
    if bad:
        _report(source, bad, len(source.rows), config.on_error, cache)
    if not len(kept):
        raise DataError(f"data.labels {printable(source.path)} has no rows that can be used")
    rows = [rows[index] for index in kept]
    classes, labels = reader.arrays([row.label for row in rows])
    return LabelTable(
        task=reader.task,
        classes=classes,
        files=files.take(kept),
        labels=labels,
        splits=np.array([row.split for row in rows]) if source.split_column else None,
        lines=np.array([row.line for row in rows], np.int64),
        reading=_describe(source, reader, classes),
    )


def _describe(source: LabelRows, reader: "_LabelReader", classes: Sequence[str]) -> str:
    unit = "number" if reader.task == "regression" else "class"
    if len(classes) != 1:
        unit += "s" if unit == "number" else "es"
    labels = ", ".join(map(printable, source.label_columns[:5]))
    labels += ", ..." if len(source.label_columns) > 5 else ""
    split = f", splits {printable(source.split_column)}" if source.split_column else ""
    return (
        f"{printable(source.path)}: {reader.task} ({reader.reason}), {len(classes)} {unit}; "
        f"columns: paths {printable(source.path_column)}, labels {labels}{split}"
    )


def _parsed(source: LabelRows, reader: "_LabelReader", bad: dict[int, str]) -> list[_Row]:
    """Returns the rows that can be used, and notes why the others cannot."""
    spelling = {name: split for split, names in SPELLINGS.items() for name in names}
    rows = []
    for line, values in source.rows:
        name, split = values.get(source.path_column), None
        if not isinstance(name, str) or not name:
            bad[line] = f"no path in the column {printable(source.path_column)}"
            continue
        if source.split_column:
            given = values.get(source.split_column)
            split = spelling.get(str(given).lower())
            if split is None:
                bad[line] = f"the split is {printable(given)!r}; expected train, val or test"
                continue
        try:
            label = reader.read(values)
        except ValueError as error:
            bad[line] = str(error)
            continue
        rows.append(_Row(line, os.path.normpath(name), label, split))
    return rows


def _joined(rows: list[_Row], reader: "_LabelReader", bad: dict[int, str]) -> list[_Row]:
    """Returns one row for each image; where there may be several labels, its rows are joined."""
    first: dict[str, _Row] = {}
    for row in rows:
        known = first.setdefault(row.name, row)
        if known is row:
            continue
        if reader.joins and known.split == row.split:
            known.label = known.label | row.label
            continue
        hint = "" if reader.task == "regression" or reader.joins else "; if images have several "
        bad[row.line] = f"{printable(row.name)} is already in line {known.line}" + (
            hint and hint + "labels, pass --data.task multilabel"
        )
    return list(first.values())


def _files_of(root: Path, names: list[str]) -> FileList:
    if any(map(os.path.isabs, names)):
        names = [os.path.join(os.path.abspath(root), name) for name in names]  # noqa: PTH100, PTH118
        return FileList(b"", [os.fsencode(name) for name in names])
    return FileList(os.fsencode(root), [os.fsencode(name) for name in names])


def _report(source: LabelRows, bad: dict[int, str], rows: int, on_error: str, cache: Path) -> None:
    texts = [f"line {line} ({reason})" for line, reason in sorted(bad.items())]
    what = "1 row" if len(bad) == 1 else f"{len(bad)} of {rows} rows"
    message = f"{printable(source.path)}: {what} cannot be used: {name_all(texts, cache)}"
    if on_error == "fail":
        raise DataError(f"{message}; mend or remove them, or pass --data.on_error skip")
    _logger.warning("warning: %s; skipping them", message)


class _LabelReader:
    """Reads the labels of rows.

    Args:
        source: The rows.
        config: Says what the labels are, or leaves it to be found out.

    Attributes:
        task: What the labels are.
        reason: Why.
        joins: Whether an image may have several rows.
    """

    def __init__(self, source: LabelRows, config: DataConfig) -> None:
        self._columns = source.label_columns
        self._where = f"{printable(source.path)} has"
        single = len(self._columns) == 1
        sample = [values.get(name) for _, values in source.rows for name in self._columns]
        present = [value for value in sample if value not in (None, "")]
        self._separator = _separator_of(present, config.task, source.delimiter) if single else None
        self.task, self.reason = self._resolve(present, config)
        self.joins = single and config.task == "multilabel"
        readers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "classification": self._read_class,
            "multilabel": self._read_set if single else self._read_flags,
            "regression": self._read_numbers,
        }
        self.read = readers[self.task]

    def _resolve(self, present: list[Any], config: DataConfig) -> tuple[Task, str]:
        if config.task != "auto":
            if config.task == "classification" and len(self._columns) > 1:
                raise DataError(
                    f"data.label_column names {len(self._columns)} columns, but data.task is "
                    "classification; name one column, or use --data.task multilabel"
                )
            return config.task, "data.task"
        if len(self._columns) > 1:
            if all(_truth(value) is not None for value in present):
                return "multilabel", "0 and 1 in several columns"
            return "regression", "several columns"
        if self._separator is not None:
            return "multilabel", f"labels divided by {self._separator!r}"
        if any(isinstance(value, list) for value in present):
            return "multilabel", "labels are lists"
        numbers = [_number(value) for value in present]
        known = [number for number in numbers if number is not None]
        if known and len(known) == len(numbers) and not all(n.is_integer() for n in known):
            return "regression", "labels are numbers"
        return "classification", "one label each"

    def _read_class(self, values: dict[str, Any]) -> str:
        return _name(values.get(self._columns[0]))

    def _read_set(self, values: dict[str, Any]) -> frozenset[str]:
        value = values.get(self._columns[0])
        if isinstance(value, list):
            return frozenset(map(_name, value))
        if value is None:
            raise ValueError(f"no {printable(self._columns[0])}")
        parts = str(value).split(self._separator) if self._separator else [str(value)]
        return frozenset(part.strip() for part in parts if part.strip())

    def _read_flags(self, values: dict[str, Any]) -> frozenset[str]:
        for name in self._columns:
            if _truth(values.get(name)) is None:
                raise ValueError(
                    f"{printable(name)} is {printable(values.get(name))!r}; expected 0 or 1"
                )
        return frozenset(name for name in self._columns if _truth(values[name]))

    def _read_numbers(self, values: dict[str, Any]) -> tuple[float, ...]:
        found = []
        for name in self._columns:
            number = _number(values.get(name))
            if number is None:
                raise ValueError(
                    f"{printable(name)} is {printable(values.get(name))!r}; expected a number"
                )
            found.append(number)
        return tuple(found)

    def arrays(self, labels: list[Any]) -> tuple[tuple[str, ...], np.ndarray]:
        """Returns the names of the classes or numbers, and what the images have of them."""
        if self.task == "regression":
            return self._columns, np.array(labels, np.float32).reshape(len(labels), -1)
        if self.task == "classification":
            names = _sorted_classes(set(labels))
            index = {name: number for number, name in enumerate(names)}
            return _valid(names), np.array([index[label] for label in labels], np.int64)
        is_flags = len(self._columns) > 1
        names = list(self._columns) if is_flags else _sorted_classes(set().union(*labels))
        index = {name: number for number, name in enumerate(names)}
        table = np.zeros((len(labels), len(names)), bool)
        for row, label in enumerate(labels):
            table[row, [index[name] for name in label]] = True
        return _valid(names), table


def _separator_of(values: list[Any], task: str, delimiter: str) -> str | None:
    """Returns what divides the labels in a cell, if something does."""
    if task not in ("auto", "multilabel"):
        return None
    allowed = _SEPARATORS if task == "multilabel" else _SEPARATORS[:2]
    texts = [value for value in values if isinstance(value, str)]
    candidates = [separator for separator in allowed if separator != delimiter]
    return next((s for s in candidates if any(s in text for text in texts)), None)


def _name(value: Any) -> str:
    if isinstance(value, bool | int | str) and str(value).strip():
        return str(value).strip()
    raise ValueError(f"the label is {printable(value)!r}; expected the name of a class")


def _truth(value: Any) -> bool | None:
    text = str(value).lower()
    return _TRUTH.get(text.removesuffix(".0"))


def _number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and abs(number) < 3e38 else None


def _sorted_classes(names: set[str]) -> list[str]:
    """Returns names in order; whole numbers by their value."""
    if all(name.isdecimal() and name.isascii() for name in names):
        return sorted(names, key=lambda name: (int(name), name))
    return sorted(names)


def _valid(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(valid_unicode(name) for name in names)
