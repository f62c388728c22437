"""Small runs of the real trainer."""

import dataclasses
import json
import os
import signal
from pathlib import Path
from typing import Any

import keras

from distcnn.cli.parser import parse_config
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


def parse(*arguments: str) -> Config:
    """Returns the configuration of a command line of `distcnn.train`."""
    config = parse_config("distcnn.train", "Trains.", arguments)
    assert config is not None
    return config


def rows(run: Path | str) -> list[dict[str, Any]]:
    """Reads `metrics.jsonl`."""
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


class SignalAt(keras.callbacks.Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, at: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self._left = at
        self._number = number

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def interrupted_run(out: Path, steps: list[int], **overrides: Any) -> dict[str, Any]:
    """Stops a run by a signal after so many batches each time, then lets it end."""
    for at in steps:
        assert Trainer(small_config(out, **overrides), [SignalAt(at)]).fit() is None
        assert not (out / "summary.json").exists()
    return small_run(out, **overrides)
