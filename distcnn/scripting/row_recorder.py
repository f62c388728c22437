"""The rows of `metrics.jsonl` of a `fit` call."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import keras
from typing_extensions import override

from distcnn.runtime.files import write_text
from distcnn.runtime.keras_hooks import plain_logs
from distcnn.storage.checkpoint import METRICS_FILE, Progress
from distcnn.storage.summary import MEASUREMENTS
from distcnn.training.callbacks.metrics import Row, row_as_json


class RowRecorder(keras.callbacks.Callback):
    """Writes a row every so many steps and at the end of every epoch.

    The rows so far are part of a checkpoint, so a resumed run writes the file anew. Speed is
    measured without the first execution, which compiles the step, and without validation.

    Args:
        folder: The run directory.
        every_steps: Steps between rows.
        batch_size: Rows of a full batch, or None if the data make their batches themselves.
        examples: Rows in an epoch, or None likewise.
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
        batch_size: int | None,
        examples: int | None,
        sinks: list[Callable[[Row], None]],
        is_chief: bool,
    ) -> None:
        super().__init__()
        self._file = folder / METRICS_FILE
        self._every_steps = every_steps
        self._batch_size = batch_size
        self._examples = examples
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
        self._rows_since += self._rows_of(self._in_epoch, done)
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
        self._pause()

    @override
    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.steps_per_epoch = self._in_epoch
        self._emit({**self._row(logs), "val_loss": None, "val_accuracy": None, **plain_logs(logs)})
        self._start_interval()

    def _rows_of(self, first: int, count: int) -> int:
        """Returns the rows of steps of an epoch; 0 if they are not known."""
        if self._batch_size is None or self._examples is None:
            return 0
        end = min((first + count) * self._batch_size, self._examples)
        return end - min(first * self._batch_size, self._examples)

    def _start_interval(self) -> None:
        self._since: float | None = time.perf_counter()
        self._since_step = self.step
        self._elapsed = 0.0
        self._rows_since = 0

    def _pause(self) -> None:
        """Stops the clock, until the next interval."""
        if self._since is not None:
            self._elapsed = time.perf_counter() - self._since
            self._since = None

    def _row(self, logs: Any) -> Row:
        metrics = plain_logs(logs or {})  # waits for the device
        self._pause()
        steps, seconds = self.step - self._since_step, self._elapsed
        is_measured = steps > 0 and seconds > 0
        if is_measured:
            self._seconds += seconds
            self._measured_rows += self._rows_since
        rate = keras.ops.convert_to_numpy(self.model.optimizer.learning_rate)
        row: Row = {
            "step": self.step,
            "epoch": self.epoch,
            "loss": None,
            "accuracy": None,
            "learning_rate": float(rate),
            "images_per_second": self._rows_since / seconds
            if is_measured and self._rows_since
            else None,
            "step_ms": 1000 * seconds / steps if is_measured else None,
            "input_wait": None,
        }
        row |= {
            name: value
            for name, value in metrics.items()
            if name not in MEASUREMENTS and not name.startswith("val_")
        }
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
