"""The command `python -m distcnn.inspect`: a report on images before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from distcnn.cli.command import run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import Parser
from distcnn.config import DataConfig, TrainConfig
from distcnn.data.remote import is_address, with_local_files
from distcnn.errors import DataError
from distcnn.inspecting.listing import list_images
from distcnn.inspecting.pictures import examine
from distcnn.inspecting.report import make_report
from distcnn.inspecting.sheet import write_sheet
from distcnn.runtime.text import printable

_MOST_LINES = 5

_LABEL_FILES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson")
"""Extensions that tell the address of a file of labels from that of a folder."""


def main(arguments: Sequence[str]) -> int:
    """Decodes every image and prints what there is, what is damaged, and what leaks."""
    parser = Parser("distcnn.inspect", "Reports on labelled images before training.")
    parser.add_argument("path", help="Folder of images, or a CSV or JSON-lines file of labels.")
    parser.add_argument("--plot", help="PNG file for a contact sheet.")
    parser.add_argument("--json", help="JSON file for the report.")
    parser.add_argument(
        "--seed", type=int, default=TrainConfig.seed, help="Seed of data.test_split: train.seed."
    )
    parser.add_data_arguments(
        "dir", "test_split", "task", "path_column", "label_column", "split_column"
    )
    options = parser.parse_args(list(arguments))
    require_writable("--json", options.json)
    require_writable("--plot", options.plot)
    data = _data_of(options.path, options.data.as_dict())
    listing = list_images(with_local_files(data), options.seed)
    pictures = examine(listing.paths)
    report = make_report(listing, pictures)
    _print_report(report)
    write_json(options.json, report)
    if options.plot:
        good = np.array([i for i, p in enumerate(pictures) if p.damage is None], np.int64)
        if not len(good):
            raise DataError(f"no image of {printable(options.path)} can be decoded")
        write_sheet(Path(options.plot), listing, good)
        print(f"contact sheet {printable(options.plot)}")
    return 0


def _data_of(name: str, values: dict[str, Any]) -> DataConfig:
    """Returns the data section for a folder or a file of labels, which may be an address."""
    path = Path(name)
    is_file = path.suffix.lower() in _LABEL_FILES if is_address(name) else not path.is_dir()
    if not is_file:
        given = values.pop("dir")
        if given is not None:
            raise DataError(
                f"data.dir is {given}, but {printable(path)} is a folder itself; drop --data.dir"
            )
        return DataConfig(**values, name="folder", dir=name, on_error="skip")
    if not is_address(name) and not path.exists():
        raise DataError(
            f"{printable(path)} does not exist; expected a folder of images, or a CSV or "
            "JSON-lines file of labels"
        )
    return DataConfig(**values, labels=name, on_error="skip")


def _print_report(report: dict[str, Any]) -> None:
    print(f"{printable(report['path'])}: {report['images']:,} images, {_size(report['bytes'])}")
    if report["reading"]:
        print(f"labels      {report['reading']}")
    splits = ", ".join(f"{count:,} {name}" for name, count in report["splits"].items())
    drawn = " (test drawn as training would draw it)" if report["test_is_drawn"] else ""
    print(f"splits      {splits}{drawn}")
    print(f"formats     {_counts(report['formats'])}; colours {_counts(report['modes'])}")
    if report["width"] is not None:
        print(f"sizes       width {_span(report['width'])}, height {_span(report['height'])}")
        for name in ("mean", "deviation"):
            print(f"{name:<12}{' '.join(f'{value:.4f}' for value in report[name])} (R, G, B)")
    _print_classes(report)
    _print_findings(report)


def _print_classes(report: dict[str, Any]) -> None:
    rows = report["classes"]
    names = [name for name in rows[0] if name != "class"]
    table = Table("class" if report["task"] != "regression" else "number", *names)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(printable(row["class"]), *(f"{row[name]:,.6g}" for name in names))
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    console.print(table)
    counts = [row["images"] for row in rows if "images" in row]
    if counts and min(counts) and max(counts) > min(counts):
        print(
            f"balance     the largest class has {max(counts) / min(counts):.1f} times the smallest"
        )


def _print_findings(report: dict[str, Any]) -> None:
    damaged = [f"{each['path']} ({each['reason']})" for each in report["damaged"]]
    _print_list("damaged", "files that cannot be decoded", damaged)
    within = [group for group in report["duplicates"] if group not in report["leaks"]]
    _print_list("duplicates", "groups of the same picture in one split", map(_shown, within))
    _print_list("leaks", "groups of the same picture across splits", map(_shown, report["leaks"]))
    conflicts = map(_shown, report["conflicts"])
    _print_list("conflicts", "groups of the same picture with different labels", conflicts)


def _shown(group: dict[str, Any]) -> str:
    parts = zip(group["paths"], group["splits"], group["labels"], strict=True)
    shown = [f"{path} [{split}, {label}]" for path, split, label in parts]
    return " = ".join(shown[:4]) + (f" = {len(shown) - 4} more" if len(shown) > 4 else "")


def _print_list(name: str, what: str, items: Any) -> None:
    items = list(items)
    print(f"{name:<12}{len(items)} {what}")
    for item in items[:_MOST_LINES]:
        print(f"            {printable(item)}")
    if len(items) > _MOST_LINES:
        print(f"            ... {len(items) - _MOST_LINES} more; --json FILE lists all")


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items()) or "none"


def _span(span: dict[str, float]) -> str:
    if span["min"] == span["max"]:
        return f"{span['min']}"
    return f"{span['min']} to {span['max']}, median {span['median']:g}"


def _size(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e9 else f"{count / 1e6:.2f} MB"


if __name__ == "__main__":
    run_command(main)
