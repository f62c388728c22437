"""Trackers: one run across resumes, and no training that ends because of them."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.metadata import (
    SESSION_START_INFO_TAG,
    parse_session_start_info_plugin_data,
)

from distcnn.cli.parser import load_config
from distcnn.errors import UsageError
from distcnn.train import main as train_command
from distcnn.training.tracking import trackers as tracking
from distcnn.training.tracking.trackers import Trackers
from distcnn.training.trainer import Trainer

TINY = {
    "train": {"epochs": 2, "batch_size": 256},
    "data": {"name": "digits", "validation_split": 0.1, "validation": "split"},
    "model": {"factory": "tests.tiny:tiny"},
}


def rows_of(file):
    with Path(file).open(newline="") as table:
        return list(csv.DictReader(table))


def log_rows(config, steps):
    """Logs rows as a run does that is resumed at its first step."""
    run = Path("run")
    file = run / "metrics.jsonl"
    kept = file.read_text().splitlines() if file.exists() else []
    kept = [line for line in kept if json.loads(line)["step"] < steps[0]]
    file.write_text("".join(f"{line}\n" for line in kept))
    with Trackers(config, run) as trackers:
        for step in steps:
            row = {"step": step, "epoch": 1, "loss": 1 / step, "accuracy": None}
            row |= {"val_loss": 0.5} if step % 20 == 0 else {}
            with file.open("a") as rows:
                rows.write(json.dumps(row) + "\n")
            trackers.log(row)
        if steps[-1] >= 40:
            (run / "summary.json").write_text("{}")
            trackers.finish({"steps": steps[-1], "test_accuracy": 0.75, "recipe": "x"})


@pytest.fixture
def _run():
    Path("run").mkdir()
    Path("run/config.yaml").write_text("recipe: x\n")


@pytest.mark.usefixtures("_run")
def test_a_table_holds_each_row_once():
    config = load_config("quickstart", logging={"trackers": "csv"})
    log_rows(config, [10, 20, 30])
    log_rows(config, [30, 40])
    rows = rows_of("run/metrics.csv")
    assert [row["step"] for row in rows] == ["10", "20", "30", "40"]
    assert [row["val_loss"] for row in rows] == ["", "0.5", "", "0.5"]


@pytest.mark.filterwarnings("ignore")  # of libraries that do not know each other's newest versions
@pytest.mark.usefixtures("_run")
def test_mlflow_has_one_run(monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path.cwd()}/store.db")
    config = load_config("quickstart", logging={"trackers": "mlflow", "experiment": "mine"})
    log_rows(config, [10, 20, 30])
    client = mlflow.MlflowClient()
    place = client.get_experiment_by_name("mine").experiment_id
    (found,) = client.search_runs([place])
    assert found.info.status == "KILLED"
    log_rows(config, [30, 40])
    (found,) = client.search_runs([place])
    assert (found.info.status, found.info.run_name) == ("FINISHED", "run")
    steps = [each.step for each in client.get_metric_history(found.info.run_id, "loss")]
    assert steps == [10, 20, 30, 40]
    assert found.data.params["optimizer.lr"] == "0.07"
    assert found.data.tags["mlflow.source.name"] == " ".join(sys.argv)
    assert found.data.metrics["final_test_accuracy"] == 0.75
    names = {each.path for each in client.list_artifacts(found.info.run_id)}
    assert names == {"config.yaml", "summary.json"}


def test_runs_that_start_together_share_a_new_store(tmp_path):
    mlflow = pytest.importorskip("mlflow")
    store = f"sqlite:///{tmp_path}/store.db"
    code = (
        "import sys, time, pathlib; from distcnn.training.tracking.mlflow_run import open_run\n"
        "folder = pathlib.Path(sys.argv[1]); folder.mkdir()\n"
        "while len(list(folder.parent.glob('run*'))) < 2: time.sleep(0.01)\n"
        "open_run(folder, {'optimizer.lr': 0.1}, 'mine', '').close()"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": store}
    runs = [
        subprocess.Popen([sys.executable, "-c", code, tmp_path / f"run{n}"], env=environment)
        for n in range(2)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    client = mlflow.MlflowClient(store)
    place = client.get_experiment_by_name("mine").experiment_id
    assert sorted(run.info.run_name for run in client.search_runs([place])) == ["run0", "run1"]


@pytest.mark.usefixtures("_run")
def test_hparams_have_a_column_for_each_setting_that_runs_may_differ_in():
    config = load_config(
        "quickstart",
        logging={"trackers": "tensorboard"},
        model={"args": {"dropout": 0.25}},
        optimizer={"schedule": "constant"},
    )
    log_rows(config, [40])
    events = EventAccumulator("run/tensorboard/hparams").Reload()
    content = events.summary_metadata[SESSION_START_INFO_TAG].plugin_data.content
    found = {
        key: getattr(value, str(value.WhichOneof("kind")))
        for key, value in parse_session_start_info_plugin_data(content).hparams.items()
    }
    assert found["model.args.dropout"] == 0.25
    assert found["optimizer.lr"] == 0.07
    assert found["optimizer.schedule"] == "constant"  # the default, but perhaps not in other runs
    assert found["recipe"] == "quickstart"
    assert "model.args" not in found
    assert "precision.policy" not in found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_run")
def test_weights_and_biases_goes_on_offline(monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    config = load_config("quickstart", logging={"trackers": "wandb"})
    log_rows(config, [10, 20, 30])
    log_rows(config, [30, 40])
    identity = json.loads(Path("run/trackers.json").read_text())["wandb"]["identity"]
    parts = list(Path("run/wandb").glob(f"offline-run-*-{identity}"))
    assert len(parts) == 2


def test_a_run_is_tracked_and_survives_a_tracker_that_fails(monkeypatch, caplog):
    class Broken:
        identity = "x"

        def log(self, row):
            raise ConnectionError("the server is gone")

        def close(self):
            raise AssertionError("it was dropped")

    class Module:
        @staticmethod
        def open_run(*_):
            return Broken()

    original = tracking.importlib.import_module
    monkeypatch.setattr(
        tracking.importlib,
        "import_module",
        lambda name: Module if "mlflow" in name else original(name),
    )
    logging = {"trackers": "csv,tensorboard,mlflow", "images": False}
    summary = Trainer(load_config("quickstart", out="run", logging=logging, **TINY)).fit()
    assert summary is not None
    rows = rows_of("run/metrics.csv")
    logged = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert [int(row["step"]) for row in rows] == [row["step"] for row in logged]
    assert [float(row["loss"]) for row in rows] == [row["loss"] for row in logged]
    assert list(Path("run/tensorboard/hparams").iterdir())
    failures = [text for text in caplog.messages if "the tracker mlflow failed" in text]
    assert len(failures) == 1
    assert "the server is gone" in failures[0]


def test_a_tracker_that_is_unknown_or_missing_is_named(monkeypatch):
    with pytest.raises(
        UsageError, match=r"logging.trackers is 'mlfow'; expected one or more of csv"
    ):
        train_command(["--logging.trackers", "mlfow"])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(
        UsageError, match=r'needs wandb, which is not .*pip install "distcnn\[wandb'
    ):
        train_command(["--logging.trackers", "csv,wandb"])
