"""A run that was interrupted ends as the uninterrupted one does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from distcnn.config import Config
from distcnn.errors import DistcnnError
from distcnn.storage.checkpoint import Checkpoints
from tests.runs import flags, interrupted_run, rows, small_config, small_run

EVERYTHING: dict[str, Any] = {
    "train__epochs": 3,
    "optimizer__name": "adamw",
    "optimizer__weight_decay": 0.01,
    "optimizer__schedule": "cosine",
    "optimizer__warmup_epochs": 0.5,
    "optimizer__ema": 0.9,
    "data__augment__mixup": 0.2,
    "data__augment__label_smoothing": 0.1,
}
"""A run with all the state that there is to lose."""


def measured(run: Path) -> list[dict[str, Any]]:
    """Returns the rows without what depends on the clock."""
    timed = ("images_per_second", "step_ms", "input_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(run)]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The summary and the folder of a run with everything that was not interrupted."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    return small_run(run, **EVERYTHING), run


@pytest.mark.parametrize("stops", [[3], [7], [9, 2], [1, 1, 1]])
def test_a_signal_stops_at_a_step_and_the_same_command_goes_on(tmp_path, stops, uninterrupted):
    whole, folder = uninterrupted
    parts = interrupted_run(tmp_path / "parts", stops, **EVERYTHING)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    timed = ("train_seconds", "images_per_second")
    assert {k: v for k, v in parts.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }
    assert measured(tmp_path / "parts") == measured(folder)


def test_steps_per_execution_may_straddle_the_stop(tmp_path):
    overrides = {"train__steps_per_execution": 3, "optimizer__schedule": "cosine"}
    whole = small_run(tmp_path / "whole", **overrides)
    parts = interrupted_run(tmp_path / "parts", [2], **overrides)
    assert parts["weights_sha256"] == whole["weights_sha256"]


def test_early_stopping_survives_an_interruption(tmp_path):
    overrides = {
        "train__epochs": 30,
        "train__early_stopping": 3,
        "optimizer__name": "sgd",
        "optimizer__lr": 1.5,
        "model__args": {"dropout": 0.9},
    }
    whole = small_run(tmp_path / "whole", **overrides)
    parts = interrupted_run(tmp_path / "parts", [10, 10], **overrides)
    assert parts["epochs"] == whole["epochs"]
    assert parts["weights_sha256"] == whole["weights_sha256"]


def train_process(config: Config) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "distcnn.train", *flags(config)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_kill_9_loses_nothing_but_time(tmp_path):
    overrides = EVERYTHING | {"train__epochs": 40}
    whole = small_run(tmp_path / "whole", **overrides)
    run = tmp_path / "killed"
    config = small_config(run, **overrides)
    process = train_process(config)
    wait_for(lambda: len(list(run.glob("checkpoints/step-*.npz"))) == 2, process)
    process.kill()
    process.communicate()
    assert not (run / "summary.json").exists()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 9')  # a row cut short
    again = train_process(config)
    _, stderr = again.communicate(timeout=200)
    assert again.returncode == 0, stderr
    assert "resumed" in stderr
    summary = json.loads((run / "summary.json").read_text())
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert measured(run) == measured(tmp_path / "whole")


def test_sigterm_exits_with_75_and_says_how_to_go_on(tmp_path):
    run = tmp_path / "run"
    config = small_config(run, train__epochs=500)
    process = train_process(config)
    wait_for(lambda: (run / "metrics.jsonl").exists() and len(rows(run)) > 2, process)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 75, stderr
    assert stderr.splitlines()[-1].startswith("stopped by SIGINT after step ")
    assert "run the same command again to continue" in stderr
    newest = Checkpoints(run / "checkpoints", keep=1).newest_first()[0]
    assert f"step-{rows(run)[-1]['step']:08d}" <= newest.stem


def test_a_new_run_may_start_from_the_state_of_another(tmp_path):
    first = tmp_path / "first"
    small_run(first)
    second = small_run(tmp_path / "second", train__epochs=4, checkpoint__resume=str(first))
    whole = small_run(tmp_path / "whole", train__epochs=4)
    assert second["weights_sha256"] == whole["weights_sha256"]
    other = {"train__epochs": 4, "checkpoint__resume": str(first)}
    stopped = interrupted_run(tmp_path / "stopped", [3], **other)
    assert stopped["weights_sha256"] == whole["weights_sha256"]
    file = Checkpoints(first / "checkpoints", keep=1).newest_first()[0]
    third = small_run(tmp_path / "third", train__epochs=4, checkpoint__resume=str(file))
    assert third["weights_sha256"] == whole["weights_sha256"]
    with pytest.raises(DistcnnError, match="which does not exist"):
        small_run(tmp_path / "fourth", checkpoint__resume="nowhere")
    with pytest.raises(DistcnnError, match=r"model\.keras, which is no checkpoint; expected a run"):
        small_run(tmp_path / "fourth", checkpoint__resume=str(first / "model.keras"))
    with pytest.raises(DistcnnError, match="the state of another model"):
        small_run(
            tmp_path / "fifth",
            train__epochs=4,
            model__factory="tests.tiny:fixed_input",
            data__name="digits",
            checkpoint__resume=str(first),
        )
