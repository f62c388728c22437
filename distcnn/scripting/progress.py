"""Adds a line to Keras' own display at the end of each epoch: speed, input, and the time left."""

import logging
import sys
import time
import weakref
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np

from distcnn.runtime.keras_hooks import (
    EPOCH_BEGIN,
    EPOCH_END,
    TEST_BEGIN,
    TRAIN_BATCH_END,
    TRAIN_BEGIN,
    Hooks,
)
from distcnn.runtime.text import duration
from distcnn.scripting.input_meter import InputMeter

log = logging.getLogger("distcnn")


@dataclass
class _Interval:
    """A part of an epoch that is measured: without compilation, and without validation."""

    since: float
    before: np.ndarray
    executions: int = 0
    seconds: float = 0.0
    counts: np.ndarray | None = None

    def end(self, totals: np.ndarray) -> None:
        """Ends the interval, unless it has ended."""
        if self.counts is None:
            self.seconds = time.perf_counter() - self.since
            self.counts = totals - self.before

    def describe(self) -> list[str]:
        """Returns rows per second, the time of a step and the waiting, as far as they are known."""
        assert self.counts is not None
        steps, rows, waited = self.counts
        if not steps or not self.executions:
            return []
        parts = [f"{rows / self.seconds:,.0f} rows/s"] if rows else []
        parts.append(f"{1000 * self.seconds / steps:.1f} ms/step")
        if steps == self.executions:
            parts.append(f"input wait {100 * min(1.0, waited / self.seconds):.1f} %")
        return parts


@dataclass
class _Fit:
    """A `fit` call in progress.

    Attributes:
        interval: What is measured of the epoch.
        began: When the first execution had ended, which compiles.
        steps_before: Steps counted then.
        epoch_steps_before: Steps counted when the epoch began.
        epochs: Epochs that this process has trained.
    """

    interval: _Interval
    began: float = field(default_factory=time.perf_counter)
    steps_before: float | None = None
    epoch_steps_before: float = 0.0
    epochs: int = 0


class EpochProgress:
    """Logs a line for each epoch of every `fit` that has Keras' progress display.

    Args:
        meter: Measures the input.
    """

    def __init__(self, meter: InputMeter) -> None:
        self._meter = meter
        self._fits: weakref.WeakKeyDictionary[Any, _Fit] = weakref.WeakKeyDictionary()

    def install(self, hooks: Hooks) -> None:
        """Makes Keras' lists of callbacks log."""
        hooks.replace(TRAIN_BEGIN, self._train_begin)
        hooks.replace(EPOCH_BEGIN, self._epoch_begin)
        hooks.replace(TRAIN_BATCH_END, self._batch_end)
        hooks.replace(TEST_BEGIN, self._test_begin)
        hooks.replace(EPOCH_END, self._epoch_end)

    def _interval(self) -> _Interval:
        return _Interval(time.perf_counter(), self._meter.totals())

    def _train_begin(self, original: Any) -> Any:
        def on_train_begin(callbacks: Any, logs: Any = None) -> None:
            original(callbacks, logs)
            if any(isinstance(c, keras.callbacks.ProgbarLogger) for c in callbacks.callbacks):
                self._fits[callbacks] = _Fit(self._interval())

        return on_train_begin

    def _epoch_begin(self, original: Any) -> Any:
        def on_epoch_begin(callbacks: Any, epoch: int, logs: Any = None) -> None:
            original(callbacks, epoch, logs)
            fit = self._fits.get(callbacks)
            if fit is not None:
                fit.interval = self._interval()
                fit.epoch_steps_before = fit.interval.before[0]

        return on_epoch_begin

    def _batch_end(self, original: Any) -> Any:
        def on_train_batch_end(callbacks: Any, batch: int, logs: Any = None) -> None:
            original(callbacks, batch, logs)
            fit = self._fits.get(callbacks)
            if fit is None:
                return
            fit.interval.executions += 1
            if fit.steps_before is None:
                fit.interval = self._interval()
                fit.began, fit.steps_before = fit.interval.since, fit.interval.before[0]

        return on_train_batch_end

    def _test_begin(self, original: Any) -> Any:
        def on_test_begin(callbacks: Any, logs: Any = None) -> None:
            fit = self._fits.get(callbacks)
            if fit is not None:
                fit.interval.end(self._meter.totals())
            original(callbacks, logs)

        return on_test_begin

    def _epoch_end(self, original: Any) -> Any:
        def on_epoch_end(callbacks: Any, epoch: int, logs: Any = None) -> None:
            fit = self._fits.get(callbacks)
            if fit is not None:
                fit.interval.end(self._meter.totals())
            original(callbacks, epoch, logs)
            if fit is not None:
                fit.epochs += 1
                self._log(fit, epoch, callbacks.params)

        return on_epoch_end

    def _log(self, fit: _Fit, epoch: int, settings: Any) -> None:
        remaining = settings["epochs"] - epoch - 1
        parts = fit.interval.describe()
        if remaining > 0:
            parts.append(f"{duration(self._seconds_left(fit, remaining, settings['steps']))} left")
        if parts:
            sys.stdout.flush()  # Keras' own line comes first
            log.info("epoch %d/%d: %s", epoch + 1, settings["epochs"], ", ".join(parts))

    def _seconds_left(self, fit: _Fit, epochs: int, steps_per_epoch: int | None) -> float:
        """Returns the time of the remaining epochs, validation included."""
        seconds = time.perf_counter() - fit.began
        steps = self._meter.totals()[0]
        done = steps - (steps if fit.steps_before is None else fit.steps_before)
        if done == 0:
            return seconds / fit.epochs * epochs
        return float(seconds / done * epochs * (steps_per_epoch or steps - fit.epoch_steps_before))
