"""What can be proven: a script, and a run of the trainer."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from distcnn.config import Config
from distcnn.errors import UsageError

STEPS = 5
"""Steps that are compared."""


class Subject(Protocol):
    """A training whose first steps can be computed by one worker and by several.

    Attributes:
        name: What an error message calls it.
        environment: Variables of its processes.
    """

    name: str
    environment: dict[str, str]

    def command(self, out: Path, float_type: str, *, sync_batchnorm: bool) -> list[str]:
        """Returns Python's arguments for one of its processes.

        Args:
            out: The file for the `Record`.
            float_type: The type to compute in.
            sync_batchnorm: Whether batch normalisation uses the rows of all workers in any case.
        """
        ...


class ScriptSubject:
    """A user's own Keras script. Keras itself limits `fit` to the first steps.

    Args:
        script: The script and its arguments.
    """

    def __init__(self, script: Sequence[str]) -> None:
        self._script = script
        self.name = script[0]
        self.environment = {"KERAS_MAX_EPOCHS": "1", "KERAS_MAX_STEPS_PER_EPOCH": str(STEPS)}

    def command(self, out: Path, float_type: str, *, sync_batchnorm: bool) -> list[str]:
        """Returns Python's arguments for one of its processes."""
        rows = "all" if sync_batchnorm else "own"
        module = "distcnn.proving.script_worker"
        return ["-m", module, str(out), float_type, rows, *self._script]


class RunSubject:
    """A run of the trainer.

    Args:
        config: Its configuration.
        workers: The number of workers, which determines the global batch.

    Raises:
        UsageError: If the global batch has fewer images than the workers have shards, the data are
            the user's own, or the run continues another one.
    """

    def __init__(self, config: Config, workers: int) -> None:
        self._config = _proven(config, workers)
        self.name = f"recipe {config.recipe}"
        self.environment: dict[str, str] = {}

    def command(self, out: Path, float_type: str, *, sync_batchnorm: bool) -> list[str]:
        """Returns Python's arguments for one of its processes; writes its configuration."""
        config = self._config
        if sync_batchnorm:
            distribute = dataclasses.replace(config.distribute, sync_batchnorm=True)
            train = dataclasses.replace(config.train, virtual_workers=None)  # each normalises alone
            config = dataclasses.replace(config, train=train, distribute=distribute)
        recipe = out.with_suffix(".yaml")
        recipe.write_text(config.to_yaml(), encoding="utf-8")
        return ["-m", "distcnn.proving.run_worker", str(out), float_type, str(recipe)]


def _proven(config: Config, workers: int) -> Config:
    """Returns the configuration with the same global batch for every number of workers.

    What only changes how numbers are rounded is off.
    """
    if config.data.factory is not None:
        raise UsageError(
            f"data.factory is {config.data.factory}, but the proof of a run is for images of "
            "a data set; prove a script that fits the same model on the same data"
        )
    if config.checkpoint.other_run is not None:
        raise UsageError(
            f"checkpoint.resume is {config.checkpoint.resume}, but the proof is of the first steps "
            "of a new run; drop it, or take the weights of that run alone by --init_from"
        )
    train = config.train
    shards = train.virtual_workers or workers * train.accumulation_steps
    batch = train.global_batch_size or train.batch_size * shards
    if batch < shards:
        raise UsageError(
            f"the global batch of {batch} images is smaller than the {shards} shards that the "
            "workers compute; raise --train.global_batch_size"
        )
    return dataclasses.replace(
        config,
        train=dataclasses.replace(
            train, global_batch_size=batch, steps_per_execution=1, fast_path="off"
        ),
        distribute=dataclasses.replace(
            config.distribute, strategy="auto", devices=None, compression="none"
        ),
        precision=dataclasses.replace(config.precision, policy="float32", xla="off", tf32=False),
    )
