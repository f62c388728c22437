"""Trains at a batch size in processes of their own, which leave nothing behind when they fail."""

import itertools
import math
import re
import signal
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from distcnn.benchmarking.process_groups import OUT_OF_MEMORY, WorkersFailedError, run_workers
from distcnn.config import Config
from distcnn.config.sections.phase import Phase
from distcnn.distribute.strategies import AUTO, default_strategy, strategy_of
from distcnn.tuning.largest_batch import Fit

_MANY_EPOCHS = 10_000
_SIGNS = re.compile(
    rf"{OUT_OF_MEMORY}|ResourceExhausted|RESOURCE_EXHAUSTED|OOM when allocating|MemoryError"
    r"|CUDA_ERROR_OUT_OF_MEMORY|Out of memory|std::bad_alloc|Cannot allocate memory"
    r"|signal 9|SIGKILL"
)
"""What the output of a process holds whose memory did not suffice. Linux kills it (signal 9)."""

_KILLED = (-signal.SIGKILL, 128 + signal.SIGKILL)


class BatchTrials:
    """Trials of batch sizes; a size fits if it fits on every worker.

    Args:
        config: The configuration of the run.
        workers: Number of workers.
        limit_mb: The most memory of each worker, in MB.
        seconds: How long to train at each size.
        folder: Folder for the output of the processes.
    """

    def __init__(
        self, config: Config, workers: int, limit_mb: float, seconds: float, folder: Path
    ) -> None:
        self._config, self._workers, self._folder = config, workers, folder
        self._arguments = {"limit_mb": limit_mb, "seconds": seconds}
        name = config.distribute.strategy
        self.strategy = default_strategy(workers) if name == AUTO or workers == 1 else name
        self._numbers = itertools.count()

    def measure(self, size: int) -> Fit | None:
        """Trains at a batch size per worker; returns None if the memory of one does not suffice.

        Raises:
            WorkersFailedError: If training fails for another reason.
        """
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        file = folder / "config.yaml"
        file.write_text(self._config_for(size).to_yaml())
        entry = {"kind": "batch", "config": str(file), "arguments": self._arguments}
        plan = {"cores_per_process": None, "entries": [entry]}
        try:
            (found,) = run_workers(self.strategy, self._workers, plan, folder)
        except WorkersFailedError as error:
            if _lacks_memory(error):
                return None
            raise
        shards = self._workers * self._config.train.accumulation_steps
        return Fit(
            found["images_per_second"],
            found["peak_memory_mb"],
            found["training_images"] // shards,
        )

    def _config_for(self, size: int) -> Config:
        config = self._config
        in_one_process = self._workers > 1 and not strategy_of(self.strategy).joins_processes
        return replace(
            config,
            train=replace(
                config.train,
                batch_size=size,
                global_batch_size=None,
                steps_per_execution=1,
                epochs=_MANY_EPOCHS,
                phases=_largest_phase(config.train.parsed_phases),
            ),
            distribute=replace(
                config.distribute,
                strategy=self.strategy,
                devices=self._workers if in_one_process else None,
            ),
            logging=replace(config.logging, profile=None),
        )


def _largest_phase(phases: Sequence[Phase]) -> list[dict[str, Any]]:
    """Returns the phase that trains most, and so takes most memory, as the only one."""

    def trained(phase: Phase) -> tuple[float, bool]:
        return math.inf if phase.layers is None else phase.layers, not phase.freeze_batchnorm

    return [{**asdict(max(phases, key=trained)), "epochs": _MANY_EPOCHS}] if phases else []


def _lacks_memory(error: WorkersFailedError) -> bool:
    killed = any(code in _KILLED for code in error.exit_codes)
    return killed or _SIGNS.search(error.log.read_text(errors="replace")) is not None
