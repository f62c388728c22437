"""When a checkpoint inside an epoch is due."""

import numpy as np
import pytest

from distcnn.distribute.base import Backend
from distcnn.training.callbacks.save_intervals import SaveIntervals
from tests.runs import SignalAt, Trainer, small_config, small_run


class Alone(Backend):
    """The backend of a single process, which counts what is exchanged."""

    def __init__(self) -> None:
        self.exchanged = 0

    def sum(self, values: np.ndarray) -> np.ndarray:
        self.exchanged += 1
        return values


@pytest.mark.parametrize("execution", [1, 3])
def test_steps_are_counted_over_the_run_and_from_each_save(execution):
    intervals = SaveIntervals(Alone(), 10, 0, 0)
    due = []
    for step in range(execution, 60, execution):
        if intervals.is_due(step):
            due.append(step)
            intervals.saved(step)
    assert (
        due == [step for step in range(60) if step % 10 < execution and step % execution == 0][1:]
    )
    intervals.saved(70)  # at the end of an epoch
    assert not intervals.is_due(71)


def test_the_interval_in_seconds_is_kept_whatever_the_speed():
    backend, now = Alone(), 0.0
    intervals = SaveIntervals(backend, 0, 60, 100, clock=lambda: now)
    saved = []
    for step in range(101, 2101):
        now += 0.1 if step < 1000 else 0.5
        if intervals.is_due(step):
            saved.append(now)
            intervals.saved(step)
    gaps = np.diff([0.0, *saved])
    assert len(saved) >= 8
    late = [gap for gap in gaps if not 60 <= gap <= 60.6]
    assert len(late) <= 2  # where steps became five times as long
    assert max(late) < 200
    assert backend.exchanged < 10 * len(saved)


def test_a_save_inside_an_epoch_changes_nothing_and_is_gone_on_from(tmp_path):
    every = {"checkpoint__every_steps": 2, "checkpoint__keep": 3}
    whole = small_run(tmp_path / "whole")
    with pytest.raises(ZeroDivisionError):
        Trainer(small_config(tmp_path / "run", **every), [Fails()]).fit()
    saved = sorted(path.name for path in (tmp_path / "run/checkpoints").glob("*.npz"))
    assert saved == ["step-00000007.npz", "step-00000008.npz", "step-00000010.npz"]
    parts = small_run(tmp_path / "run", **every)
    assert parts["weights_sha256"] == whole["weights_sha256"]


class Fails(SignalAt):
    """Fails in step 12."""

    def __init__(self) -> None:
        super().__init__(0)
        self._steps = 0

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._steps += 1
        if self._steps == 12:
            raise ZeroDivisionError
