"""What trackers show of a run's configuration and summary."""

import dataclasses
import math
from pathlib import Path
from typing import Any

from distcnn.config import Config
from distcnn.config.recipe import flatten

_NOT_SHOWN = ("logging.", "out")

_OFTEN_VARIED = (
    *("model.name", "optimizer.name", "optimizer.lr", "optimizer.schedule"),
    *("optimizer.weight_decay", "optimizer.ema", "optimizer.warmup_epochs", "train.epochs"),
    *("train.batch_size", "train.global_batch_size", "train.seed"),
)
"""Keys that are shown with their default too, as other runs beside this one may have another."""


def settings_of(config: Config) -> dict[str, Any]:
    """Returns the configuration by dotted key; each argument of the model has one of its own."""
    values = flatten(dataclasses.asdict(config)) | {"recipe": str(config.recipe)}
    arguments = values.pop("model.args")
    return values | {f"model.args.{name}": value for name, value in arguments.items()}


def shown_values(config: dict[str, Any]) -> dict[str, Any]:
    """Returns the settings in which runs are likely to differ: no defaults, but for some keys."""
    defaults = settings_of(Config())
    return {
        key: value
        for key, value in config.items()
        if value is not None
        and (value != defaults.get(key) or key in _OFTEN_VARIED)
        and not key.startswith(_NOT_SHOWN)
    }


def results(summary: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a summary that are results."""
    names = ("loss", "accuracy", "val_", "test_", "train_seconds", "images_per_second")
    return {
        key: float(value)
        for key, value in summary.items()
        if key.startswith(names) and isinstance(value, int | float) and math.isfinite(value)
    }


def numbers(row: dict[str, Any]) -> dict[str, float]:
    """Returns the metrics of a row that are numbers, without the step."""
    return {
        key: float(value)
        for key, value in row.items()
        if key != "step"
        and isinstance(value, int | float)
        and not isinstance(value, bool)
        and math.isfinite(value)
    }


def files_of(folder: Path) -> list[Path]:
    """Returns the files of a finished run that trackers keep."""
    names = ("config.yaml", "environment.json", "summary.json", "model.keras")
    pictures = sorted(folder.glob("confusion_*.png"))
    return [file for file in (*(folder / name for name in names), *pictures) if file.exists()]
