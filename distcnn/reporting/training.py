"""What a run directory says of the training: key figures, curves, settings, environment."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from typing import Any

from distcnn.config import Config
from distcnn.config.recipe import flatten
from distcnn.reporting.charts import Line, line_chart
from distcnn.reporting.markup import folded, number, pairs, section, table
from distcnn.runtime.text import duration
from distcnn.storage.metrics_file import MEASUREMENTS
from distcnn.storage.run_list import RunRecord

Tile = tuple[str, str, str]
"""A key figure: what it is, its value, and a remark."""

_SCORES = ("accuracy", "mAP", "f1", "mse", "mae")
_MOST_CHARTS = 6


def training_tiles(run: RunRecord, *, with_test: bool) -> list[Tile]:
    """Returns the key figures of the training.

    Args:
        run: What the run directory says.
        with_test: Whether to show what the run itself found on the test images.
    """
    summary, found = run.summary, []
    shown = {"test": "test", "val": "validation"} if with_test else {"val": "validation"}
    for key, split in shown.items():
        for name in _SCORES:
            if summary.get(f"{key}_{name}") is not None:
                value = number(summary[f"{key}_{name}"])
                found.append((f"{split} {name}", value, f"epoch {summary.get('saved_epoch')}"))
    if summary.get("train_seconds") is not None:
        speed = summary.get("images_per_second")
        remark = f"{speed:,.0f} images/s" if speed else ""
        found.append(("training time", duration(summary["train_seconds"]), remark))
    if summary.get("steps") is not None:
        remark = f"{summary['steps']:,} steps of {summary.get('global_batch_size')}"
        found.append(("epochs", number(summary.get("epochs")), remark))
    if summary.get("world_size") is not None:
        found.append(("workers", number(summary["world_size"]), str(summary.get("strategy"))))
    if summary.get("parameters") is not None:
        remark = str(summary.get("precision", ""))
        found.append(("parameters", number(summary["parameters"]), remark))
    return found


def curves_section(run: RunRecord) -> str:
    """Returns the section with the curves of the training."""
    charts = [_metric_chart(run, name) for name in _metrics(run.rows)[:_MOST_CHARTS]]
    for name, title in (
        ("learning_rate", "learning rate"),
        ("images_per_second", "images per second"),
    ):
        steps, values = run.curve(name)
        charts.append(line_chart(title, [Line(title, steps, values)], "step"))
    shown = "".join(charts)
    return section("training", "Training", f'<div class="charts">{shown}</div>' if shown else "")


def _metrics(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Returns the names of the metrics, loss first, then in the order in which they appear."""
    names = dict.fromkeys(
        name.removeprefix("val_")
        for row in rows
        for name, value in row.items()
        if name not in MEASUREMENTS and isinstance(value, int | float)
    )
    return sorted(names, key=lambda name: name != "loss")


def _metric_chart(run: RunRecord, name: str) -> str:
    lines = [
        Line(label, *run.curve(key))
        for key, label in ((name, "training"), (f"val_{name}", "validation"))
    ]
    return line_chart(name, lines, "step")


def restarts_section(restarts: list[dict[str, Any]]) -> str:
    """Returns the section on the restarts of a run by its launcher; empty without any."""
    rows = [
        (
            number(each.get("attempt")),
            number(each.get("cause")),
            number(each.get("host")),
            number(each.get("rank")),
            number(each.get("step")),
            number(each.get("resumed_at")),
            number(each.get("steps_lost")),
            number(each.get("seconds", {}).get("total"), 1),
        )
        for each in restarts
    ]
    headings = ("attempt", "cause", "host", "rank", "step", "resumed at", "steps lost", "seconds")
    return section("restarts", "Restarts", table(headings, rows, texts=3))


def settings_section(run: RunRecord) -> str:
    """Returns the section with the configuration, first what is not the default."""
    defaults = flatten(dataclasses.asdict(Config()))
    differing = [
        (key, _setting(value))
        for key, value in run.settings.items()
        if key in defaults and _setting(value) != _setting(defaults[key])
    ]
    every = [(key, _setting(value)) for key, value in run.settings.items()]
    return section(
        "configuration",
        "Configuration",
        '<p class="soft">What differs from the defaults; <code>config.yaml</code> in the run '
        "directory repeats the run.</p>",
        pairs(differing),
        folded(f"All {len(every)} settings", pairs(every)),
    )


def _setting(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def environment_section(environment: Mapping[str, Any]) -> str:
    """Returns the section on where the run was trained, and what its settings became."""
    if not environment:
        return ""
    packages = environment.get("packages", {})
    names = ("started", "host", "platform", "cpu", "cores", "memory_bytes", "gpu")
    content = [(name, environment[name]) for name in names if environment.get(name) is not None]
    content = [
        ("memory", f"{value / 2**30:.1f} GiB") if name == "memory_bytes" else (name, value)
        for name, value in content
    ]
    versions = [(name, environment[name]) for name in ("distcnn", "python") if name in environment]
    command = " ".join(map(str, environment.get("command", [])))
    resolved = environment.get("resolved", {})
    return section(
        "environment",
        "Environment",
        pairs([*content, ("command", command), *versions, *packages.items()]),
        folded("What the settings became", pairs((k, _setting(v)) for k, v in resolved.items())),
    )
