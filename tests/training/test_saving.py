"""Checkpoints are written while training goes on: what they hold, and what becomes of errors."""

import contextlib
import errno
import signal
import threading
import time

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.errors import DistcnnError
from distcnn.storage import checkpoint
from distcnn.storage.checkpoint import (
    Checkpoints,
    read_checkpoint,
    reserve,
    restore,
    snapshot,
    stored_mark,
)
from distcnn.storage.metrics_file import metrics_until
from distcnn.training.callbacks.saved_state import save_callbacks
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, small_config, small_run

SECONDS = 60
"""Long enough for whatever must happen."""


def test_a_snapshot_shares_no_memory_with_the_variables():
    kinds = {
        "tensorflow": [tf.Variable(tf.zeros((2, 3))), tf.Variable(0, dtype=tf.int64)],
        "keras": [keras.Variable(np.zeros((300, 300), np.float32)), keras.Variable(0.0)],
        "mirrored": [],
    }
    strategy = tf.distribute.MirroredStrategy(["CPU:0"])
    with strategy.scope():
        kinds["mirrored"] = [tf.Variable(tf.zeros(4)), keras.Variable(np.zeros(3, np.float32))]
    reserved = reserve(kinds)
    arrays = snapshot(kinds, reserved)
    assert all(arrays[name] is buffer for name, buffer in reserved.items())
    assert all(arrays[name] is not array for name, array in snapshot(kinds).items())
    before = {name: array.copy() for name, array in arrays.items()}
    restore(kinds, {name: np.ones_like(a) for name, a in arrays.items()}, "a test")
    handle = kinds["tensorflow"][0].handle
    tf.raw_ops.ResourceApplyGradientDescent(var=handle, alpha=1.0, delta=tf.ones((2, 3)))
    tf.raw_ops.ResourceScatterUpdate(resource=handle, indices=[0], updates=tf.ones((1, 3)))
    tf.raw_ops.AssignVariableOp(resource=handle, value=tf.ones((2, 3)))
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], name)
    again = snapshot(kinds, arrays)
    for name in set(again) - {"names"}:
        np.testing.assert_array_equal(again[name], 1 + 0 * again[name], name)
        assert again[name] is arrays[name]


def test_what_a_callback_hands_over_is_copied():
    class Counting(keras.callbacks.Callback):
        counts = np.zeros(3)

        def state_dict(self):
            return {"counts": self.counts, "list": [self.counts]}

    callback = Counting()
    saved = save_callbacks([(0, callback)])
    callback.counts += 1
    assert saved["callbacks/0/counts/0"].tolist() == saved["callbacks/0/list/0"].tolist() == [0] * 3


class Gate(keras.callbacks.Callback):
    """Lets no checkpoint be written before the training has reached a step."""

    reads_logs = False

    def __init__(self, until):
        super().__init__()
        self.until = until
        self.steps = 0
        self.open = threading.Event()

    def on_train_batch_end(self, batch, logs=None):
        self.steps += 1
        if self.steps == self.until:
            self.open.set()

    @contextlib.contextmanager
    def closed(self, error=None):
        write = checkpoint.write_checkpoint

        def wait_and_write(*arguments):
            assert self.open.wait(SECONDS), "training did not go on"
            if error is not None:
                raise error
            write(*arguments)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(checkpoint, "write_checkpoint", wait_and_write)
            yield


FULL = OSError(errno.ENOSPC, "No space left on device")


def test_training_goes_on_and_the_checkpoint_has_the_state_of_its_step(tmp_path):
    run, reference, gate = tmp_path / "run", tmp_path / "reference", Gate(until=12)
    with gate.closed():
        Trainer(small_config(run), [gate]).fit()  # 7 steps an epoch, a row every 3
    small_run(reference)
    for step in (7, 14):
        mine, theirs = (Checkpoints(f / "checkpoints", keep=3).path(step) for f in (run, reference))
        (arrays, progress), (expected, expected_progress) = map(read_checkpoint, (mine, theirs))
        assert set(arrays) == set(expected)
        for name in set(expected) - {"names"}:
            np.testing.assert_array_equal(arrays[name], expected[name], name)
        assert progress.best_loss == expected_progress.best_loss
        rows = metrics_until(stored_mark(mine), (run / "metrics.jsonl").read_bytes())
        assert rows.count(b"\n") == {7: 3, 14: 6}[step]  # steps 3, 6, 7, 9, 12, 14
    assert (run / "summary.json").exists()


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_failed_write_ends_the_run_before_its_summary(epochs, tmp_path):
    gate = Gate(until=7 * epochs)
    with (
        gate.closed(FULL),
        pytest.raises(
            DistcnnError,
            match=r"step-00000007\.npz cannot be written: No space left on device; there is none "
            "yet; free some space and run the same command again",
        ),
    ):
        Trainer(small_config(tmp_path / "run", train__epochs=epochs), [gate]).fit()
    assert not (tmp_path / "run" / "summary.json").exists()
    whole = small_run(tmp_path / "whole", train__epochs=epochs)
    again = small_run(tmp_path / "run", train__epochs=epochs)
    assert again["weights_sha256"] == whole["weights_sha256"]


class Fails(keras.callbacks.Callback):
    def on_epoch_end(self, epoch, logs=None):
        if epoch == 1:
            raise RuntimeError("the user's own")


@pytest.mark.parametrize("error", [None, FULL])
def test_another_error_waits_for_the_write_and_loses_none(error, tmp_path, caplog):
    gate = Gate(until=12)
    config = small_config(tmp_path / "run")
    with gate.closed(error), pytest.raises(RuntimeError, match="the user's own"):
        Trainer(config, [gate, Fails()]).fit()
    is_written = Checkpoints(tmp_path / "run/checkpoints", keep=1).path(7).exists()
    assert is_written == (error is None)
    assert ("npz cannot be written: No space left" in caplog.text) == (error is not None)


@pytest.mark.parametrize("error", [None, FULL])
def test_a_signal_ends_the_run_when_the_state_is_written(error, tmp_path, caplog):
    caplog.set_level("INFO", "distcnn")
    run, write = tmp_path / "run", checkpoint.write_checkpoint

    def slowly(path, *arguments):
        time.sleep(0.3)
        if error is not None and path.name == "step-00000009.npz":
            raise error
        write(path, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, "write_checkpoint", slowly)
        trainer = Trainer(small_config(run), [SignalAt(9, signal.SIGTERM)])
        if error is None:
            assert trainer.fit() is None
        else:
            with pytest.raises(DistcnnError, match=r"step-00000007\.npz is the last good one"):
                trainer.fit()
    assert ("stopped by SIGTERM after step 9" in caplog.text) == (error is None)
    newest = Checkpoints(run / "checkpoints", keep=1).newest_first()[0]
    assert newest.name == ("step-00000009.npz" if error is None else "step-00000007.npz")
    assert not list((run / "checkpoints").glob(".partial*"))
