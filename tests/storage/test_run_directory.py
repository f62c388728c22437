"""The run directory: its content, and when it is refused."""

import dataclasses
import hashlib
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import yaml

from distcnn.config.recipe import settings_of_run
from distcnn.config.safe_yaml import read_yaml, sealed
from distcnn.errors import DistcnnError
from distcnn.storage.summary import hash_weights
from distcnn.training.trainer import Trainer
from tests.data.samples import encoded, pixels
from tests.runs import SignalAt, rows, small_config, small_run


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    run = tmp_path / "run"
    summary = small_run(run)
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "model.keras",
        "checkpoints",
    }
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["recipe"] == "small"
    assert summary["strategy"] == "one_device"
    assert (summary["world_size"], summary["precision"], summary["xla"]) == (1, "float32", False)
    assert (summary["epochs"], summary["steps"]) == (2, 14)
    assert (summary["global_batch_size"], summary["learning_rate"]) == (32, 1e-3)
    assert summary["weights_agree"] is True
    assert summary["train_seconds"] > 0
    assert summary["images_per_second"] > 0

    model = keras.saving.load_model(run / "model.keras")
    digest = hashlib.sha256(b"".join(np.asarray(w, np.float32).tobytes() for w in model.weights))
    assert summary["weights_sha256"] == digest.hexdigest() == hash_weights(model.weights)
    assert summary["parameters"] == model.count_params()

    lines = rows(run)
    assert [(row["step"], row["epoch"]) for row in lines] == [
        (3, 1),
        (6, 1),
        (7, 1),
        (9, 2),
        (12, 2),
        (14, 2),
    ]
    keys = {"step", "epoch", "loss", "accuracy", "learning_rate"}
    keys |= {"images_per_second", "step_ms", "input_wait"}
    assert all(set(row) >= keys for row in lines)
    assert [row["step"] for row in lines if "val_loss" in row] == [7, 14]
    assert summary["val_accuracy"] == lines[-1]["val_accuracy"] is not None
    assert all(0 <= row["input_wait"] <= 1 for row in lines)

    environment = json.loads((run / "environment.json").read_text())
    assert environment["resolved"]["global_batch_size"] == 32
    assert environment["resolved"]["xla_reason"]
    assert settings_of_run(run)["data.synthetic_examples"] == 230


def test_out_may_not_hold_something_else(tmp_path):
    run = tmp_path / "run"
    small_run(run)
    with pytest.raises(DistcnnError, match="holds a finished run; choose another --out"):
        small_run(run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DistcnnError, match="holds files that are not a run"):
        small_run(other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(DistcnnError, match="is a file"):
        small_run(other / "thesis.txt")
    with pytest.raises(DistcnnError, match="cannot be written"):
        small_run("/proc/run")


def test_without_out_the_next_free_folder_is_taken(tmp_path):
    config = dataclasses.replace(small_config("unused"), out=None)
    for _ in range(2):
        Trainer(config).fit()
    assert {p.name for p in Path("runs").iterdir()} == {"small", "small-2"}


def test_two_processes_cannot_share_a_run_directory(tmp_path):
    first = Trainer(small_config(tmp_path / "run"))
    first.directory.create(first.config, {"resolved": first.setup.resolved()})
    second = Trainer(small_config(tmp_path / "run"))
    with pytest.raises(DistcnnError, match="another process is already training"):
        second.fit()
    first.directory.close()
    small_run(tmp_path / "run")


def test_another_configuration_is_refused_by_key(tmp_path):
    run = tmp_path / "run"
    assert Trainer(small_config(run), [SignalAt(3)]).fit() is None
    before = sorted(run.rglob("*"))
    with pytest.raises(DistcnnError, match=r"optimizer\.lr 0\.001 -> 0\.1"):
        small_run(run, optimizer__lr=0.1)
    with pytest.raises(DistcnnError, match="would overwrite it"):
        small_run(run, checkpoint__resume="never")
    assert sorted(run.rglob("*")) == before
    file = run / "config.yaml"  # as a version wrote it that did not have this key
    content = read_yaml(file)
    del content["optimizer"]["bias_lr_factor"]
    file.write_text(sealed(yaml.safe_dump(content)))
    with pytest.raises(DistcnnError, match=r"optimizer\.bias_lr_factor 1\.0 -> 2\.0\)"):
        small_run(run, optimizer__bias_lr_factor=2.0)
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
    first = images / "train" / "a" / "00.png"
    content, times = first.read_bytes(), (first.stat().st_atime_ns, first.stat().st_mtime_ns)
    changed = r"was started with other images: names, sizes, modification times or pixels have"
    first.write_bytes(encoded(pixels(8, 8, 99), "PNG"))
    with pytest.raises(DistcnnError, match=changed):
        small_run(tmp_path / "run", **overrides)
    first.write_bytes(content)
    os.utime(first, ns=times)
    first.rename(first.with_name("zz.png"))
    with pytest.raises(DistcnnError, match=changed):
        small_run(tmp_path / "run", **overrides)
    first.with_name("zz.png").rename(first)
    first.unlink()
    with pytest.raises(
        DistcnnError, match="started with 36 training images, but this run would use 35"
    ):
        small_run(tmp_path / "run", **overrides)
