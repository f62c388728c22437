"""The tracker `tensorboard`: the configuration and the results on TensorBoard's page HParams."""

from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorboard.plugins.hparams import api

from distcnn.training.tracking.values import results, shown_values


class HParams:
    """What TensorBoard's page HParams shows of a run.

    Args:
        folder: The run directory.
        config: The configuration by dotted key.
    """

    identity = ""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        self._folder, self._config = folder, config

    def log(self, row: dict[str, Any]) -> None:
        """Does nothing: TensorBoard has the metrics already."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Writes the configuration and the results."""
        writer = tf.summary.create_file_writer(str(self._folder / "tensorboard" / "hparams"))
        shown = {
            key: value if isinstance(value, bool | int | float | str) else str(value)
            for key, value in shown_values(self._config).items()
        }
        with writer.as_default(summary["steps"]):
            api.hparams(shown, trial_id=str(self._folder))
            for name, value in results(summary).items():
                tf.summary.scalar(f"results/{name}", value)
        writer.close()

    def close(self) -> None:
        """Does nothing: the file is closed after it is written."""


def open_run(folder: Path, config: dict[str, Any], experiment: str, identity: str) -> HParams:
    """Returns a run."""
    return HParams(folder, config)
