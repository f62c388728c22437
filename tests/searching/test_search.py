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
(folder / "config.yaml").write_text(json.dumps(config))
for epoch in range(done + 1, epochs + 1):
    value = (1 - abs(rate - 0.3)) * epoch / epochs
    with rows.open("a") as file:
        print(json.dumps({"epoch": epoch, "val_loss": 1, "val_accuracy": value}), file=file)
    lags = os.environ.get("LAGGING_TRIALS_WAIT") and rate > 0.7 and int(folder.name) >= 5
    while epoch == 1 and (lags or os.path.exists("hold")):
        time.sleep(0.02)
(folder / "summary.json").write_text(json.dumps({"val_accuracy": value}))
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch, tmp_path):
    script = tmp_path / "run.py"
    script.write_text(RUN)
    (tmp_path / "space.yaml").write_text("optimizer.lr: {low: 0.01, high: 1.0}")
    complete = Search._command

    def shortened(self, folder, settings):
        line = complete(self, folder, settings)
        assert line[1:3] == ["-m", "distcnn.train"]
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
    Path("hold").unlink()
    assert search(*arguments) == 0
    done = json.loads(Path("result.json").read_text())["trials"]
    assert [trial["state"] for trial in done] == ["finished"] * 3
    assert [t["settings"] for t in done[:2]] == [t["settings"] for t in stopped]
    for file in Path("found").rglob("metrics.jsonl"):
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


def test_errors_are_named():
    with pytest.raises(UsageError, match=r"expected one of val_accuracy"):
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
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in slots] == ["4", "6"]
    assert [slot.environment["CUDA_VISIBLE_DEVICES"] for slot in divide_host(3)] == ["4", "6", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert divide_host(1)[0].environment == {}
    assert divide_host(1)[0].cores == (0, 1, 2, 5)
