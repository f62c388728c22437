"""A run that has lost its processes, and one host, goes on from the memory of the other."""

import json
import shutil

from distcnn.storage.run_directory import read_run_id
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
