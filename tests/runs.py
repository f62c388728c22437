"""Small runs of the real trainer."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from distcnn.config import Config
from distcnn.config.recipe import flatten
from distcnn.training.trainer import Trainer


def small_config(out: Path | str, **overrides: Any) -> Config:
    """A run of two epochs of 7 steps (the last one smaller) with everything random switched on.

    Args:
        out: Run directory.
        **overrides: Values by dotted key, dots written as two underscores.
    """
    values: dict[str, Any] = {
        "recipe": "small",
        "out": str(out),
        "data.name": "synthetic",
        "data.synthetic_examples": 230,
        "data.augment.flip": True,
        "data.augment.crop": 2,
        "model.factory": "tests.tiny:tiny",
        "train.epochs": 2,
        "train.batch_size": 32,
        "logging.every_steps": 3,
        "logging.images": False,
        "logging.tensorboard": False,
        "logging.progress": "none",
        "precision.policy": "float32",  # whatever this CPU does fastest
    }
    values |= {key.replace("__", "."): value for key, value in overrides.items()}
    config = Config()
    unknown = set(values) - set(flatten(dataclasses.asdict(config)))
    assert not unknown, unknown
    changed: Config = _replaced(config, values)
    return changed


def _replaced(section: Any, values: dict[str, Any]) -> Any:
    """Replaces values by dotted key, a section at once, so that they are checked together."""
    changes = {key: value for key, value in values.items() if "." not in key}
    for name in {key.split(".")[0] for key in values if "." in key}:
        inner = {k.partition(".")[2]: v for k, v in values.items() if k.startswith(f"{name}.")}
        changes[name] = _replaced(getattr(section, name), inner)
    return dataclasses.replace(section, **changes)


def small_run(out: Path | str, **overrides: Any) -> dict[str, Any]:
    """Trains to the end and returns the summary."""
    summary = Trainer(small_config(out, **overrides)).fit()
    assert summary is not None
    return summary


def flags(config: Config) -> list[str]:
    """Returns the command line that says the same as a configuration."""
    values = flatten(dataclasses.asdict(config))
    values.pop("recipe")
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in values.items()
    ]


def rows(run: Path | str) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]
