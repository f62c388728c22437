"""A search over stand-ins for runs, which take no time."""

import json
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from distcnn import search as command
from distcnn.errors import DistcnnError, UsageError

pytest.importorskip("optuna")
from distcnn.searching.search import Search
from distcnn.searching.space import Range, Space
from distcnn.searching.study import Study

RUN = """
import json, os, pathlib, signal, sys, time
flags = dict(each[2:].split("=", 1) for each in sys.argv[1:] if "=" in each)
folder = pathlib.Path(sys.argv[sys.argv.index("--out") + 1])
rate, epochs = float(flags["optimizer.lr"]), int(flags["train.epochs"])
if rate > 0.9:
    print("error: the loss is not finite"); sys.exit(1)
folder.mkdir(exist_ok=True)
rows = folder / "metrics.jsonl"
done = len(rows.read_text().splitlines()) if rows.exists() else 0
signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
config = {"out": str(folder), "recipe": "quickstart", "optimizer": {"lr": rate}}
if "--workers" in sys.argv:
    config |= {"train": {"batch_size": 32}, "distribute": {"strategy": "horovod"}}
seen = [os.environ.get("CUDA_VISIBLE_DEVICES"), sorted(os.sched_getaffinity(0)), sys.argv[1:]]
(folder / "seen.json").write_text(json.dumps(seen))
(folder / "config.yaml").write_text(json.dumps(config))
for epoch in range(done + 1, epochs + 1):
    value = (1 - abs(rate - 0.3)) * epoch / epochs
    with rows.open("a") as file:
        print(json.dumps({"epoch": epoch, "val_loss": 1, "val_accuracy": value}), file=file)
    lags = os.environ.get("LAGGING_TRIALS_WAIT") and rate > 0.7 and int(folder.name) >= 5
    while epoch == 1 and (lags or os.path.exists("hold")):
        time.sleep(0.02)
if os.environ.get("METRICS_OVERFLOW"):
    value = float("nan")
summary = {"val_accuracy": value, "val_f1": None, "global_batch_size": 64}
(folder / "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 0.01, high: 1.0}")
    complete = Search._command

    def shortened(self, folder, settings):
        line = complete(self, folder, settings)
        of_train = ["-m", "distcnn.train"]
        of_launch = ["-m", "distcnn.launch", "--workers", str(self.plan.workers), "train"]
        expected = of_train if self.plan.workers == 1 else of_launch
        assert line[1 : 1 + len(expected)] == expected
        return [sys.executable, str(script), *line[3:]]

    monkeypatch.setattr(Search, "_command", shortened)
    monkeypatch.setattr("distcnn.searching.search._POLL_SECONDS", 0.02)


def search(*arguments, out="found"):
    given = ["--recipe", "quickstart", "--space", "space.yaml", "--train.epochs=3", "--out", out]
    return command.main([*given, *arguments])


def test_a_search_finds_the_best_and_writes_it_as_a_recipe(capsys):
    assert search("--trials", "14", "--jobs", "2", "--json", "result.json") == 0
    result = json.loads(Path("result.json").read_text())
    trials = result["trials"]
    assert [trial["number"] for trial in trials] == list(range(14))
    assert {trial["state"] for trial in trials} <= {"finished", "pruned", "failed"}
    finished = [trial for trial in trials if trial["state"] == "finished"]
    best = max(finished, key=lambda trial: trial["value"])
    assert result["best"] == best["number"]
    for trial in finished:
        assert trial["value"] == pytest.approx(1 - abs(trial["settings"]["optimizer.lr"] - 0.3))
        assert set(trial["values"]) == {"1", "2", "3"}
    recipe = yaml.safe_load(Path("found/best.yaml").read_text())
    assert recipe == {"recipe": "quickstart", "optimizer": {"lr": best["settings"]["optimizer.lr"]}}
    assert result["importances"] == {"optimizer.lr": 1.0}
    printed = capsys.readouterr().out
    assert f"best: trial {best['number']}, val_accuracy {best['value']:.4f}" in printed
    for name in ("history.png", "importances.png"):
        assert Path("found", name).read_bytes().startswith(b"\x89PNG")
    assert "<td>finished</td>" in Path("found/search.html").read_text()
    # The same command has nothing left to do; more trials go on from there.
    assert search("--trials", "14", "--jobs", "2") == 0
    assert search("--trials", "15", "--jobs", "2", "--json", "result.json") == 0
    again = json.loads(Path("result.json").read_text())["trials"]
    assert again[:14] == trials
    assert len(again) == 15


def test_a_search_that_is_stopped_or_killed_goes_on_with_its_trials():
    def stop_after_an_epoch():
        while len([file for file in Path("found").rglob("metrics.jsonl") if file.read_text()]) < 2:
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    Path("hold").touch()
    threading.Thread(target=stop_after_an_epoch).start()
    arguments = ("--trials", "3", "--jobs", "2", "--pruner", "none", "--json", "result.json")
    assert search(*arguments) == 75
    stopped = json.loads(Path("result.json").read_text())["trials"]
    assert [trial["state"] for trial in stopped] == ["running", "running"]
    rows = [len(file.read_text().splitlines()) for file in Path("found").rglob("metrics.jsonl")]
    assert rows == [1, 1]
    # One trial ends before the search goes on, as after a kill; nobody knows how long it took.
    Path("found/trials/0000/summary.json").write_text('{"val_accuracy": 0.5}')
    Path("hold").unlink()
    assert search(*arguments) == 0
    done = json.loads(Path("result.json").read_text())["trials"]
    assert [trial["state"] for trial in done] == ["finished"] * 3
    assert [t["settings"] for t in done[:2]] == [t["settings"] for t in stopped]
    assert done[0]["value"] == 0.5
    assert "<td>0.0</td>" not in Path("found/search.html").read_text()
    for number in (1, 2):
        file = Path("found/trials", f"{number:04d}", "metrics.jsonl")
        assert [json.loads(row)["epoch"] for row in file.read_text().splitlines()] == [1, 2, 3]


def test_a_trial_that_lags_behind_is_stopped(monkeypatch):
    monkeypatch.setenv("LAGGING_TRIALS_WAIT", "1")
    assert search("--trials", "12", "--pruner", "median", "--json", "result.json") == 0
    trials = json.loads(Path("result.json").read_text())["trials"]
    pruned = [trial for trial in trials if trial["state"] == "pruned"]
    assert pruned
    for trial in pruned:
        assert not Path("found/trials", f"{trial['number']:04d}", "summary.json").exists()
        assert trial["value"] is not None


def test_a_trial_whose_metric_is_not_finite_has_failed(monkeypatch, capsys):
    monkeypatch.setenv("METRICS_OVERFLOW", "1")
    Path("space.yaml").write_text("optimizer.lr: {low: 0.1, high: 0.2}")
    assert search("--trials", "1", "--json", "result.json") == 0
    result = json.loads(Path("result.json").read_text())
    assert result["best"] is None
    (trial,) = result["trials"]
    assert (trial["state"], trial["attributes"]["reason"]) == ("failed", "val_accuracy is nan")
    assert "best" not in capsys.readouterr().out


def test_errors_are_named():
    with pytest.raises(UsageError, match=r"expected one of val_accuracy$"):
        search("--trials", "1", "--metric", "val_f1")
    with pytest.raises(DistcnnError, match=r"found holds another search \(metric 'val_f1' ->"):
        search("--trials", "1")
    Path("space.yaml").write_text("train.epochs: [1, 0]")
    with pytest.raises(UsageError, match=r"train.epochs is 0"):
        command.main(["--space", "space.yaml", "--recipe", "quickstart", "--out", "other"])
    with pytest.raises(UsageError, match=r"is a flag and in the space too"):
        search("--trials", "1", out="third")
    with pytest.raises(UsageError, match=r"--checkpoint\.resume does not apply"):
        search("--checkpoint.resume", "never")
    Path("space.yaml").write_text("optimizer.lr: {low: 0.95, high: 1.0}")
    with pytest.raises(DistcnnError, match=r"5 trials in a row failed.*the loss is not finite"):
        search("--trials", "9", out="failing")


def test_trials_side_by_side_have_their_own_cores_and_gpus(monkeypatch):
    from distcnn.searching.slots import divide_host

    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 5})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    slots = divide_host(2)
    assert [slot.cores for slot in slots] == [(0, 1), (2, 5)]
    assert [slot.environment for slot in slots] == [
        {"CUDA_VISIBLE_DEVICES": "4"},
        {"CUDA_VISIBLE_DEVICES": "6"},
    ]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in divide_host(3)] == ["4", "6", "4"]
    assert divide_host(3)[1].environment["TF_FORCE_GPU_ALLOW_GROWTH"] == "true"
    assert divide_host(1, 2)[0].environment == {"CUDA_VISIBLE_DEVICES": "4,6"}
    with pytest.raises(UsageError, match=r"jobs is 2 and workers is 2, but there are only 2 GPUs"):
        divide_host(2, 2)
    for hidden in ("", "-1"):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
        assert divide_host(1, 2)[0].environment == {}
    assert divide_host(1)[0].cores == (0, 1, 2, 5)


def test_trials_of_several_workers_have_gpus_of_their_own(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    instances = ["0", "1", "MIG-a", "MIG-b", "4"]
    monkeypatch.setattr("distcnn.searching.slots.nvidia_devices", lambda: instances)
    arguments = ("--jobs", "2", "--workers", "2", "--pruner", "none")
    assert search("--trials", "4", *arguments) == 0
    seen = [json.loads(file.read_text()) for file in Path("found/trials").glob("*/seen.json")]
    assert {devices for devices, *_ in seen} == {"0,1", "MIG-a,MIG-b,4"}
    for devices, cores, words in seen:
        assert words[:3] == ["--workers", "2", "train"]
        threads = [word for word in words if word.startswith("--precision.threads")]
        assert threads == [f"--precision.threads={max(1, len(cores) // 2)}"]
        assert all(c == cores for d, c, _ in seen if d == devices)
    recipe = yaml.safe_load(Path("found/best.yaml").read_text())
    assert recipe["distribute"]["strategy"] == "auto"
    assert recipe["train"]["global_batch_size"] == 64


def test_successive_halving_lets_the_best_third_go_on():
    """Rungs end after 1, 3 and 9 epochs; on each, a trial must be among the best third so far."""
    space: Space = {"optimizer.lr": Range(0.01, 1.0)}
    folder = Path("study")
    folder.mkdir()
    study = Study(folder, space, "val_accuracy", "asha", 0)
    stopped = []
    for value in (0.5, 0.9, 0.2, 0.8, 0.1, 0.95, 0.3, 0.4, 0.85):
        number = study.ask()
        epochs = (epoch for epoch in range(1, 10) if study.report(number, epoch, value))
        stopped.append(next(epochs, None))
        if stopped[-1] is None:
            study.finish(number, value)
        else:
            study.prune(number)
        # As a search that goes on after a kill.
        study = Study(folder, space, "val_accuracy", "asha", 0)
    assert stopped == [None, None, 1, 1, 1, None, 1, 1, 3]
    states = [row.state for row in study.rows()]
    assert states == ["finished" if end is None else "pruned" for end in stopped]
