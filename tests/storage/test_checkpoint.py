"""Checkpoints: which are kept, and what happens when one is damaged or cannot be written."""

import dataclasses
import json
import resource
import subprocess

import numpy as np
import pytest

from distcnn.errors import DistcnnError
from distcnn.runtime.files import file_digest, write_text
from distcnn.storage.checkpoint import (
    Checkpoints,
    Progress,
    find_checkpoint,
    read_checkpoint,
    write_checkpoint,
)
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


def test_metrics_that_were_changed_are_refused_and_kept(tmp_path, caplog):
    run = tmp_path / "run"
    config = small_config(run, train__epochs=4)
    assert Trainer(config, [SignalAt(25)]).fit() is None
    whole = (run / "metrics.jsonl").read_bytes()
    for old, new in (
        (b'"step": 3,', b'"step": 2,'),
        (b'{"step": 3,', b'["step": 3,'),
        (whole, b""),
    ):
        damaged = whole.replace(old, new, 1)
        (run / "metrics.jsonl").write_bytes(damaged)
        with pytest.raises(
            DistcnnError, match=r"metrics\.jsonl is damaged .*; restore it, or delete"
        ):
            small_run(run, train__epochs=4)
        assert (run / "metrics.jsonl").read_bytes() == damaged
    (run / "metrics.jsonl").write_bytes(whole + b'{"step": 26, "ep')  # written after the checkpoint
    small_run(run, train__epochs=4)
    reference = small_run(tmp_path / "reference", train__epochs=4)
    assert json.loads((run / "summary.json").read_text())["val_loss"] == reference["val_loss"]
    steps = [row["step"] for row in rows(tmp_path / "reference")]
    # The signal's own row, and the rows after it, are at the same steps.
    assert [row["step"] for row in rows(run)] == steps


def test_metrics_that_were_deleted_do_not_stop_a_run(tmp_path, caplog):
    run = tmp_path / "run"
    assert Trainer(small_config(run, train__epochs=4), [SignalAt(25)]).fit() is None
    (run / "metrics.jsonl").unlink()
    small_run(run, train__epochs=4)
    assert f"{run / 'metrics.jsonl'} is missing; its rows up to step 25 are lost" in caplog.text
    assert rows(run)[-1]["step"] == 28


def test_no_content_of_an_older_checkpoint_keeps_the_next_from_being_saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    arrays = {"a": np.arange(3)}
    path = checkpoints.save(arrays, Progress(step=1))
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\x01\x02") + 6] = 200  # the version needed to extract
    path.write_bytes(content)
    assert read_checkpoint(checkpoints.save(arrays, Progress(step=2)))[1].step == 2


@pytest.mark.parametrize(
    ("meta", "reason"),
    [
        ({"step": "x"}, "its step is 'x'; expected int"),
        ({"best_loss": None}, "its best_loss is None; expected float"),
        ({"stopped": 1}, "its stopped is 1; expected bool"),
    ],
)
def test_a_checkpoint_of_other_types_is_refused(meta, reason, tmp_path):
    path = tmp_path / "step-00000001.npz"
    content = json.dumps(dataclasses.asdict(Progress()) | meta).encode()
    np.savez(path, meta=np.frombuffer(content, np.uint8))
    write_text(tmp_path / f"{path.name}.sha256", f"{file_digest(path)}  {path.name}\n")
    with pytest.raises(DistcnnError, match=f"is not a checkpoint of distcnn: {reason}"):
        read_checkpoint(path)


def test_a_run_does_not_start_from_a_checkpoint_without_names(tmp_path):
    path = tmp_path / "step-00000001.npz"
    write_checkpoint(path, {"a": np.zeros(3)}, Progress(step=1))
    with pytest.raises(DistcnnError, match="it has no names of variables"):
        find_checkpoint(path)


def test_a_checkpoint_that_would_expand_is_refused(tmp_path):
    path = tmp_path / "step-00000001.npz"
    np.savez_compressed(path, meta=np.zeros(3, np.uint8), a=np.zeros(10**7))
    write_text(tmp_path / f"{path.name}.sha256", f"{file_digest(path)}  {path.name}\n")
    with pytest.raises(DistcnnError, match="its arrays are larger than the file"):
        read_checkpoint(path)


def test_the_newest_and_the_best_are_kept(tmp_path):
    run = tmp_path / "run"
    small_run(run, train__epochs=5, checkpoint__keep=2, **WORSENING)
    losses = [row["val_loss"] for row in rows(run) if "val_loss" in row]
    best_step = 7 * (int(np.argmin(losses)) + 1)
    assert best_step < 28
    names = sorted(p.name for p in (run / "checkpoints").glob("*.npz"))
    assert names == [f"step-{step:08d}.npz" for step in (best_step, 28, 35)]
    _, progress = read_checkpoint(run / "checkpoints" / names[-1])
    assert (progress.best_step, progress.best_epoch) == (best_step, best_step // 7 - 1)
    check = ["sha256sum", "--check", "--quiet", *[f"{name}.sha256" for name in names]]
    subprocess.run(check, cwd=run / "checkpoints", check=True)


WORSENING = {
    "optimizer__name": "sgd",
    "optimizer__lr": 1.5,
    "model__args": {"dropout": 0.9},
}
"""A run whose validation loss is not the lowest at its end."""


def test_what_an_older_checkpoint_calls_the_best_is_kept_too(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=2)
    arrays = {"a": np.arange(3)}
    for step, best in ((10, 10), (20, 10), (30, 30), (40, 30)):
        checkpoints.save(arrays, Progress(step=step, best_step=best))
        steps = [int(path.stem[5:]) for path in checkpoints.newest_first()]
        assert steps == {10: [10], 20: [20, 10], 30: [30, 20, 10], 40: [40, 30]}[step]


def test_the_best_epochs_checkpoint_is_kept_and_must_be_whole(tmp_path):
    config = small_config(tmp_path / "run", train__epochs=5, train__early_stopping=3, **WORSENING)
    assert Trainer(config, [SignalAt(30)]).fit() is None
    checkpoints = Checkpoints(tmp_path / "run" / "checkpoints", keep=2)
    _, progress = read_checkpoint(checkpoints.newest_first()[0])
    best = checkpoints.path(progress.best_step)
    content = best.read_bytes()
    best.write_bytes(content[:-1])
    with pytest.raises(DistcnnError, match=r"is damaged.*it is the best epoch's"):
        Trainer(config).fit()
    best.write_bytes(content)
    summary = Trainer(config).fit()
    assert summary is not None
    assert summary["saved_epoch"] == progress.best_epoch + 1


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
