"""A run of phases that loses a rank in the second one goes on to the weights of one worker."""

import json
import signal

import keras

from tests.lockstep.groups import start_group
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.lockstep.test_failures import wait_until
from tests.runs import flags, rows, small_config, small_run

PHASES = {
    "data__synthetic_examples": 600,  # 34 steps an epoch
    "model__args": {"dropout": 0.0, "activation": "tanh", "norms": 2},
    "train__global_batch_size": 16,
    "train__phases": [
        {"train": "head", "epochs": 1, "learning_rate": 0.05},
        {"train": "all", "epochs": 2},
    ],
    "train__epochs": 3,
    "train__callbacks": ["tests.tiny:Unhurried"],
    "optimizer__name": "sgd",
    "optimizer__lr": 0.01,
    "optimizer__schedule": "cosine",
    "distribute__sync_batchnorm": True,
    "checkpoint__every_steps": 5,
    "logging__every_steps": 2,
}


def test_kill_9_in_the_second_phase_and_one_worker_agree(tmp_path):
    run, alone = tmp_path / "run", tmp_path / "alone"
    arguments = ["-m", "distcnn.train", *flags(small_config(run, **PHASES))]
    group = start_group("horovod", 2, arguments, tmp_path / "first", UNHURRIED="1")
    small_run(alone, **PHASES)

    def in_second_phase() -> bool:
        saved = any(int(p.stem[5:]) > 34 for p in (run / "checkpoints").glob("step-*.npz"))
        return saved and rows(run)[-1]["step"] > 40

    wait_until(in_second_phase, group)
    group.ranks()[1].send_signal(signal.SIGKILL)
    assert all(group.wait(timeout=30)), group.output()
    assert not (run / "summary.json").exists()
    again = start_group("horovod", 2, arguments, tmp_path / "again")
    assert again.wait() == [0], again.output()
    assert "resumed" in again.output()
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["steps"], summary["world_size"], summary["weights_agree"]) == (102, 2, True)
    ours, theirs = (
        keras.saving.load_model(folder / "model.keras").get_weights() for folder in (run, alone)
    )
    assert difference(ours, theirs) <= TOLERANCE
