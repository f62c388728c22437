"""A run that has lost its processes, and one host, goes on from the memory of the other."""

import functools
import json
import shutil

import keras
import pytest

from distcnn.storage.checkpoint import Checkpoints
from distcnn.storage.memory_copies import MemoryCopies
from distcnn.storage.run_directory import read_run_id
from distcnn.training import trainer
from distcnn.training.state_copies import StateCopies
from tests.launching.launched import OVERRIDES
from tests.lockstep.groups import start_group
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.lockstep.test_failures import weights_of
from tests.runs import flags, rows, small_config, small_run


def test_the_run_goes_on_from_the_host_that_is_left(tmp_path):
    overrides = {**OVERRIDES, "train__callbacks": [], "data__synthetic_examples": 300}
    overrides |= {"checkpoint__memory_every_steps": 5, "train__epochs": 2}  # of 17 steps
    reference = tmp_path / "reference"
    small_run(reference, **overrides)
    run, memory = tmp_path / "run", tmp_path / "memory"
    words = flags(small_config(run, **overrides))

    def start(lost_after):
        program = ["-m", "tests.training.copying_rank", str(memory), str(lost_after)]
        return start_group("horovod", 2, [*program, *words], tmp_path / f"group-{lost_after}")

    lost = start(lost_after=12)
    assert all(lost.wait()), lost.output()
    assert not (run / "checkpoints").exists()  # the first epoch has not ended
    shutil.rmtree(memory / "host-0")
    run_id = read_run_id(run)
    again = start(lost_after=0)
    assert again.wait() == [0], again.output()
    assert f"resumed         {run} at step 10, from the memory of" in again.output()
    assert again.output().count("34 batches") == 2, again.output()  # each rank's callback
    assert difference(weights_of(run), weights_of(reference)) <= TOLERANCE
    assert [row["step"] for row in rows(run)] == [row["step"] for row in rows(reference)]
    assert json.loads((run / "environment.json").read_text())["run_id"] == run_id
    assert not list(memory.rglob("*.npz"))


class Losing(keras.callbacks.Callback):
    """Loses the run in the middle of a step."""

    def __init__(self, at):
        super().__init__()
        self._left = at

    def on_train_batch_begin(self, batch, logs=None):
        self._left -= 1
        if self._left == 0:
            raise RuntimeError("the run is lost")


@pytest.fixture
def memory(tmp_path, monkeypatch):
    folder = tmp_path / "memory"
    folder.mkdir()
    monkeypatch.setattr(trainer, "StateCopies", functools.partial(StateCopies, memory=folder))
    return folder


@pytest.mark.parametrize("fits", [True, False])
def test_a_copy_is_used_only_if_the_run_directory_has_what_it_builds_on(
    fits, memory, tmp_path, caplog
):
    caplog.set_level("INFO", "distcnn")
    run, reference = tmp_path / "run", tmp_path / "reference"
    small_run(reference)  # 2 epochs of 7 steps
    config = small_config(run, checkpoint__memory_every_steps=3, checkpoint__every_steps=2)
    with pytest.raises(RuntimeError, match="the run is lost"):
        trainer.Trainer(config, [Losing(11)]).fit()  # a copy of step 9, a checkpoint of 10
    checkpoints = Checkpoints(run / "checkpoints", keep=1)
    checkpoints.delete(checkpoints.path(10))
    if not fits:  # the best epoch's, of step 7, as if it had been on its way to the disk
        checkpoints.delete(checkpoints.path(7))
    trainer.Trainer(config).fit()
    assert ("at step 9, from the memory of" in caplog.text) == fits
    mine, theirs = (json.loads((f / "summary.json").read_text()) for f in (run, reference))
    assert mine["weights_sha256"] == theirs["weights_sha256"]


def test_too_little_memory_is_a_warning(memory, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(MemoryCopies, "free_bytes", lambda copies: 1000)
    small_run(tmp_path / "run", checkpoint__memory_every_steps=3, train__epochs=1)
    assert "0 MB free, and a copy takes" in caplog.text
    assert caplog.text.count("no copies of the state in the memory") == 1
    assert not list(memory.rglob("*.npz"))
