"""Checkpoints: which are kept, and what happens when one is damaged or cannot be written."""

import resource
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from distcnn.errors import DistcnnError
from distcnn.runtime.files import write_text
from distcnn.storage.checkpoint import Checkpoints, Progress, read_checkpoint, write_checkpoint
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, rows, small_config, small_run


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


def test_checkpoints_need_no_links(tmp_path, monkeypatch):
    def refuse(*arguments: Any) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "hardlink_to", refuse)
    small_run(tmp_path / "run")
    _, best = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.npz")
    assert best.step in (7, 14)


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
