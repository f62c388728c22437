"""The tracker `wandb`: a run of Weights & Biases, offline unless WANDB_MODE says otherwise."""

import os
import secrets
from pathlib import Path
from typing import Any

import wandb

from distcnn.training.tracking.values import files_of, numbers, results


class WandbRun:
    """One run of Weights & Biases, for the whole life of the run directory.

    Args:
        folder: The run directory.
        config: The configuration by dotted key.
        experiment: Name of the project.
        identity: The run's identity if it was begun before, else empty.
    """

    def __init__(
        self, folder: Path, config: dict[str, Any], experiment: str, identity: str
    ) -> None:
        self._folder = folder
        self.identity = identity or secrets.token_hex(4)
        self._run = wandb.init(
            project=experiment,
            name=folder.name,
            id=self.identity,
            resume="allow",
            config=config,
            dir=str(folder),
            mode=os.environ.get("WANDB_MODE", "offline"),
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, row: dict[str, Any]) -> None:
        """Logs the numbers of a row at its step."""
        self._run.log(numbers(row), step=row["step"])

    def finish(self, summary: dict[str, Any]) -> None:
        """Logs the results, the files and the confusion matrix."""
        for key, value in results(summary).items():
            self._run.summary[f"final_{key}"] = value
        for file in files_of(self._folder):
            self._run.save(str(file), base_path=str(self._folder), policy="now")
        pictures = {file.stem: wandb.Image(str(file)) for file in self._folder.glob("*.png")}
        if pictures:
            self._run.log(pictures)

    def close(self) -> None:
        """Ends this process's part of the run."""
        self._run.finish()


def open_run(folder: Path, config: dict[str, Any], experiment: str, identity: str) -> WandbRun:
    """Returns the run, begun or continued."""
    return WandbRun(folder, config, experiment, identity)
