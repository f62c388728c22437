"""A run that was interrupted ends as the uninterrupted one does."""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from distcnn.config import Config
from distcnn.errors import DistcnnError
from distcnn.runtime.files import write_text
from distcnn.storage.checkpoint import Checkpoints, Progress, read_checkpoint, write_checkpoint
from distcnn.training.trainer import Trainer
from tests.data.samples import encoded, pixels
from tests.runs import flags, rows, small_config, small_run

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


class SignalAt(keras.callbacks.Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, at: int, number: signal.Signals = signal.SIGTERM) -> None:
        super().__init__()
        self._left = at
        self._number = number

    def on_train_batch_begin(self, batch: int, logs: Any = None) -> None:
        self._left -= 1
        if self._left == 0:
            os.kill(os.getpid(), self._number)


def interrupted_run(out: Path, steps: list[int], **overrides: Any) -> dict[str, Any]:
    """Stops a run by a signal after so many batches each time, then lets it end."""
    for at in steps:
        assert Trainer(small_config(out, **overrides), [SignalAt(at)]).fit() is None
        assert not (out / "summary.json").exists()
    return small_run(out, **overrides)


def measured(run: Path) -> list[dict[str, Any]]:
    """Returns the rows without what depends on the clock."""
    timed = ("images_per_second", "step_ms", "input_wait")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(run)]


@pytest.mark.parametrize("stops", [[3], [7], [9, 2], [1, 1, 1]])
def test_a_signal_stops_at_a_step_and_the_same_command_goes_on(tmp_path, stops):
    whole = small_run(tmp_path / "whole", **EVERYTHING)
    parts = interrupted_run(tmp_path / "parts", stops, **EVERYTHING)
    assert parts["weights_sha256"] == whole["weights_sha256"]
    timed = ("train_seconds", "images_per_second")
    assert {k: v for k, v in parts.items() if k not in timed} == {
        k: v for k, v in whole.items() if k not in timed
    }
    assert measured(tmp_path / "parts") == measured(tmp_path / "whole")


def test_a_signal_does_not_save_a_loss_that_is_no_number(tmp_path):
    overrides = {"model__factory": "tests.tiny:exploding", "model__args": {"at": 2}}
    config = small_config(tmp_path / "run", logging__every_steps=100, **overrides)
    with pytest.raises(DistcnnError, match="the loss of step 2 is not finite"):
        Trainer(config, [SignalAt(3)]).fit()
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_steps_per_execution_may_straddle_the_stop(tmp_path):
    overrides = {"train__steps_per_execution": 3, "optimizer__schedule": "cosine"}
    whole = small_run(tmp_path / "whole", **overrides)
    parts = interrupted_run(tmp_path / "parts", [2], **overrides)
    assert parts["weights_sha256"] == whole["weights_sha256"]


def test_user_callbacks_see_each_batch_once(tmp_path):
    seen: list[tuple[int, int]] = []

    class Watch(keras.callbacks.Callback):
        epoch = -1

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((self.epoch, batch))

    config = small_config(tmp_path / "run")
    assert Trainer(config, [Watch(), SignalAt(4)]).fit() is None
    assert Trainer(config, [Watch()]).fit() is not None
    assert seen == [(epoch, batch) for epoch in range(2) for batch in range(7)]


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


def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path, caplog):
    whole = small_run(tmp_path / "whole", train__epochs=4)
    run = tmp_path / "run"
    config = small_config(run, train__epochs=4)
    assert Trainer(config, [SignalAt(25)]).fit() is None
    newest, older = Checkpoints(run / "checkpoints", keep=2).newest_first()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    summary = small_run(run, train__epochs=4)
    assert summary["weights_sha256"] == whole["weights_sha256"]
    assert f"{newest} is damaged" in caplog.text
    assert older.stem == "step-00000021"


def test_another_configuration_is_refused_by_key(tmp_path):
    run = tmp_path / "run"
    assert Trainer(small_config(run), [SignalAt(3)]).fit() is None
    before = sorted(run.rglob("*"))
    with pytest.raises(DistcnnError, match=r"optimizer\.lr 0\.001 -> 0\.1"):
        small_run(run, optimizer__lr=0.1)
    with pytest.raises(DistcnnError, match="would overwrite it"):
        small_run(run, checkpoint__resume="never")
    assert sorted(run.rglob("*")) == before
    small_run(run, logging__every_steps=1)


def test_a_run_does_not_go_on_with_other_images(tmp_path):
    images = tmp_path / "images"
    for name in ("a", "b"):
        for number in range(20):
            file = images / "train" / name / f"{number:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(encoded(pixels(8, 8, number), "PNG"))
    overrides = {"data__name": "folder", "data__dir": str(images), "train__batch_size": 8}
    config = small_config(tmp_path / "run", **overrides)
    assert Trainer(config, [SignalAt(2)]).fit() is None
    (images / "train" / "a" / "00.png").unlink()
    with pytest.raises(DistcnnError, match="started with 36 training images, now there are 35"):
        small_run(tmp_path / "run", **overrides)


def test_checkpoints_need_no_links(tmp_path, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    small_run(tmp_path / "run")
    _, best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.npz")
    assert best.step in (7, 14)


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
    with pytest.raises(DistcnnError, match="the state of another model"):
        small_run(
            tmp_path / "fifth",
            model__factory="tests.tiny:fixed_input",
            data__name="digits",
            checkpoint__resume=str(first),
        )


def test_the_newest_and_the_best_are_kept(tmp_path):
    run = tmp_path / "run"
    small_run(run, train__epochs=5, checkpoint__keep=2)
    names = sorted(p.name for p in (run / "checkpoints").glob("*.npz"))
    assert names == ["best.npz", "step-00000028.npz", "step-00000035.npz"]
    losses = [row["val_loss"] for row in rows(run) if "val_loss" in row]
    _, best = read_checkpoint(run / "checkpoints" / "best.npz")
    assert best.best_epoch == int(np.argmin(losses))
    assert best.step == 7 * (best.best_epoch + 1)
    check = ["sha256sum", "--check", "--quiet", *[f"{name}.sha256" for name in names]]
    subprocess.run(check, cwd=run / "checkpoints", check=True)


def test_a_failing_write_keeps_the_old_file(tmp_path):
    path = tmp_path / "step-00000001.npz"
    write_checkpoint(path, {"a": np.arange(3)}, Progress(step=1))
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, old[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_checkpoint(path, {"a": np.zeros(10_000)}, Progress(step=2))
        with pytest.raises(OSError, match="too large"):
            write_text(tmp_path / "text", "x" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    arrays, progress = read_checkpoint(path)
    assert (arrays["a"].tolist(), progress.step) == ([0, 1, 2], 1)
    assert sorted(p.name for p in tmp_path.glob("*")) == [path.name, f"{path.name}.sha256"]


def test_a_full_disk_stops_with_one_line_and_the_last_good_checkpoint(tmp_path):
    run = tmp_path / "run"
    assert Trainer(small_config(run, train__epochs=3), [SignalAt(9)]).fit() is None
    good = Checkpoints(run / "checkpoints", keep=1).newest_first()[0]
    size = good.stat().st_size
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size // 2, old[1]))
    try:
        with pytest.raises(DistcnnError) as error:
            small_run(run, train__epochs=3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert "cannot be written: File too large" in str(error.value)
    assert f"{good} is the last good one" in str(error.value)
    whole = small_run(tmp_path / "whole", train__epochs=3)
    assert small_run(run, train__epochs=3)["weights_sha256"] == whole["weights_sha256"]
