"""The rows of `metrics.jsonl` of a `fit` call."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np
from typing_extensions import override

from distcnn.runtime.files import write_text
from distcnn.runtime.keras_fit import plain_logs
from distcnn.storage.checkpoint import Progress
from distcnn.storage.metrics_file import MEASUREMENTS, METRICS_FILE
from distcnn.training.callbacks.metrics import Row, row_as_json
from distcnn.training.callbacks.non_finite import NotFiniteError


class RowRecorder(keras.callbacks.Callback):
    """Writes a row every so many steps and at the end of every epoch; stops if the loss is NaN.

    The rows so far are part of a checkpoint, so a resumed run writes the file anew. Speed is
    measured without the first execution, which compiles the step, and without validation.

    Args:
        folder: The run directory.
        every_steps: Steps between rows.
        totals: Returns batches, rows, and seconds of waiting for them so far, as `InputMeter`.
        sinks: Called with each row, on the chief.
        is_chief: Whether this process writes.

    Attributes:
        step: Number of steps done.
        epoch: The current epoch, counted from 1.
        steps_per_epoch: Steps of the last whole epoch.
        rows: All rows so far.
        progress: The progress of the run.
    """

    def __init__(
        self,
        folder: Path,
        every_steps: int,
        *,
        totals: Callable[[], np.ndarray],
        sinks: list[Callable[[Row], None]],
        is_chief: bool,
    ) -> None:
        super().__init__()
        self._file = folder / METRICS_FILE
        self._every_steps = every_steps
        self._totals = totals
        self._sinks = sinks
        self._is_chief = is_chief
        self._seconds = 0.0
        self._measured_rows = 0
        self._in_epoch = 0
        self._is_compiled = False
        self.step = 0
        self.epoch = 0
        self.steps_per_epoch = 0
        self.rows: list[Row] = []
        self._start_interval()

    @property
    def progress(self) -> Progress:
        """The progress of the run."""
        return Progress(
            step=self.step,
            steps_per_epoch=self.steps_per_epoch,
            train_seconds=self._seconds,
            images=self._measured_rows,
        )

    def state_dict(self) -> dict[str, Any]:
        """Returns what a checkpoint keeps."""
        names = ("step", "epoch", "steps_per_epoch", "rows")
        own = ("_seconds", "_measured_rows", "_in_epoch")
        return {name: getattr(self, name) for name in (*names, *own)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a checkpoint."""
        for name, value in state.items():
            setattr(self, name, value)
        self._write_all()
        self._start_interval()

    @override
    def on_train_begin(self, logs: Any = None) -> None:
        self._write_all()

    @override
    def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
        self.epoch = epoch + 1
        self._in_epoch = 0
        self._start_interval()

    @override
    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        before, done = self.step, batch + 1 - self._in_epoch
        self.step += done
        self._in_epoch = batch + 1
        if not self._is_compiled:
            plain_logs(logs or {})  # waits for the device
            self._is_compiled = True
            self._start_interval()
        is_due = self.step // self._every_steps > before // self._every_steps
        if is_due and self._in_epoch != (self.params or {}).get("steps"):
            self._emit(self._row(logs))

    @override
    def on_test_begin(self, logs: Any = None) -> None:
        self._end_interval()

    @override
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.steps_per_epoch = self._in_epoch
        self._emit({**self._row(logs), "val_loss": None, "val_accuracy": None, **plain_logs(logs)})
        self._start_interval()

    def _start_interval(self) -> None:
        self._since = time.perf_counter()
        self._since_step = self.step
        self._before = self._totals()
        self._interval: tuple[float, np.ndarray] | None = None

    def _end_interval(self) -> tuple[float, np.ndarray]:
        """Ends the interval, if it has not ended; returns its seconds and what was read in it."""
        if self._interval is None:
            self._interval = time.perf_counter() - self._since, self._totals() - self._before
        return self._interval

    def _row(self, logs: Any) -> Row:
        metrics = plain_logs(logs or {})  # waits for the device
        if not np.isfinite(metrics.get("loss", 0.0)):
            raise NotFiniteError(
                f"the loss is not finite at step {self.step} or before, so the run stopped; all "
                "checkpoints are from before. Lower the learning rate, or give the optimizer a "
                "clipnorm"
            )
        seconds, (batches, rows, waited) = self._end_interval()
        steps = self.step - self._since_step
        is_measured = steps > 0 and seconds > 0
        if is_measured:
            self._seconds += seconds
            self._measured_rows += int(rows)
        # An execution of several steps reads its next batch while it computes.
        is_timed = is_measured and self.model.steps_per_execution == 1
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        row: Row = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": None,
            "accuracy": None,
            "learning_rate": float(rate),
            "images_per_second": float(rows / seconds) if is_measured and batches else None,
            "step_ms": 1000 * seconds / steps if is_measured else None,
            "input_wait": min(1.0, float(waited / seconds)) if is_timed else None,
        }
        reserved = (*MEASUREMENTS, *(name for name in metrics if name.startswith("val_")))
        row |= {name: value for name, value in metrics.items() if name not in reserved}
        self._start_interval()
        return row

    def _emit(self, row: Row) -> None:
        self.rows.append(row)
        if not self._is_chief:
            return
        with self._file.open("a", encoding="utf-8") as file:
            file.write(row_as_json(row))
        for sink in self._sinks:
            sink(row)

    def _write_all(self) -> None:
        if self._is_chief:
            write_text(self._file, "".join(map(row_as_json, self.rows)))
