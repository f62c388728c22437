"""Measures the run, and passes rows of metrics to whatever shows or stores them."""

import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import keras
from typing_extensions import override

from distcnn.runtime.files import strict_json
from distcnn.storage.metrics_file import MEASUREMENTS
from distcnn.training.setup import TrainingSetup

Row = dict[str, Any]
"""One row of `metrics.jsonl`: step, epoch (counted from 1), loss, accuracy, learning_rate,
images_per_second, step_ms, input_wait (fraction of the time) and, on an epoch's last row, val_loss
and val_accuracy (None without validation); then the other metrics of a model that its owner has
compiled. loss and accuracy are None if such a model does not report them."""


class MetricsRecorder(keras.callbacks.Callback):
    """Emits a row every `logging.every_steps` global steps and at the end of every epoch.

    Loss and accuracy are those of the epoch so far. Speed is measured since the last row, without
    the process's first execution, which compiles the step, and without validation.

    Args:
        setup: The run.
        sinks: Called with each row.
        advance: Called with the global step after every execution.
    """

    reads_logs = False

    def __init__(
        self,
        setup: TrainingSetup,
        sinks: list[Callable[[Row], None]],
        advance: Callable[[int], None],
    ) -> None:
        super().__init__()
        self._training = setup.training
        self._sampler = setup.sampler
        self._setup = setup
        self._optimizer = setup.optimizer
        self._every_steps = setup.config.logging.every_steps
        self._sinks = sinks
        self._advance = advance
        self._compiled = False
        self._epoch_row: Row | None = None
        self._seconds = 0.0
        self._images = 0
        self._start_interval()

    @override
    def on_epoch_begin(self, epoch: int, logs: Row | None = None) -> None:
        if self._optimizer is not self._setup.optimizer:  # a new phase, whose step is traced anew
            self._optimizer = self._setup.optimizer
            self._compiled = False
        self._start_interval()

    @override
    def on_train_batch_end(self, batch: int, logs: Row | None = None) -> None:
        training = self._training
        if not self._compiled:
            training.wait()
            self._compiled = True
            self._start_interval()
        self._advance(training.step)
        if training.just_passed(self._every_steps) and training.step_in_epoch:
            self._emit(self._row())

    def on_test_begin(self, logs: Row | None = None) -> None:
        """Measures the epoch's last interval before its validation begins."""
        self._epoch_row = self._row()

    def on_epoch_end(self, epoch: int, logs: Row | None = None) -> None:
        """Emits the epoch's last row, with the validation."""
        row = self._epoch_row or self._row()
        self._epoch_row = None
        validation = {k: v for k, v in (logs or {}).items() if k.startswith("val_")}
        self._emit(row | {"val_loss": None, "val_accuracy": None} | validation)

    def measured(self) -> tuple[float, int]:
        """Returns the measured seconds of training, and the images trained on in that time."""
        return self._seconds, self._images

    def _start_interval(self) -> None:
        self._since = time.perf_counter()
        self._since_step = self._training.step
        self._training.pop_input_wait()

    def _row(self) -> Row:
        self._training.wait()
        step = self._training.step
        seconds = time.perf_counter() - self._since
        waited = self._training.pop_input_wait()
        steps = step - self._since_step
        images = self._sampler.images_before(step) - self._sampler.images_before(self._since_step)
        measured = steps > 0 and seconds > 0
        if measured:
            self._seconds += seconds
            self._images += images
        metrics = self._training.metrics()
        row: Row = {
            "step": step,
            "epoch": math.ceil(step / self._sampler.steps_per_epoch),
            "loss": None,
            "accuracy": None,
            "learning_rate": float(keras.ops.convert_to_numpy(self._optimizer.learning_rate)),
            "images_per_second": images / seconds if measured else None,
            "step_ms": 1000 * seconds / steps if measured else None,
            "input_wait": min(1.0, waited / seconds) if measured else None,
        }
        row |= {k: v for k, v in metrics.items() if k not in MEASUREMENTS}
        self._start_interval()
        return row

    def _emit(self, row: Row) -> None:
        for sink in self._sinks:
            sink(row)


class MetricsWriter:
    """Appends rows to `metrics.jsonl`; a context manager that closes the file.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("a", encoding="utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()

    def __call__(self, row: Row) -> None:
        """Writes and flushes a row; NaN and infinity become null."""
        self._file.write(row_as_json(row))
        self._file.flush()


def row_as_json(row: Row) -> str:
    """Returns a row as a line of `metrics.jsonl`; NaN and infinity become null."""
    return json.dumps(strict_json(row)) + "\n"
