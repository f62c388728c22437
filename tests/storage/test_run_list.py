"""Listing and comparing runs."""

import json
from pathlib import Path

import pytest
import yaml

from distcnn.errors import DistcnnError
from distcnn.runs import main
from distcnn.storage.run_list import differing_keys, find_runs


def make(path, rate, accuracies, summary=None):
    path.mkdir(parents=True)
    config = {"recipe": "quickstart", "out": str(path), "optimizer": {"lr": rate}}
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "environment.json").write_text("{}")
    rows = [{"step": 10 * n, "val_accuracy": value} for n, value in enumerate(accuracies, 1)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (path / "metrics.jsonl").write_text(text + '{"step": 99, "val_')  # being written
    if summary is not None:
        (path / "summary.json").write_text(json.dumps(summary))


def test_runs_are_listed_by_what_they_reached(capsys):
    make(Path("runs/a"), 0.1, [0.5, 0.7], {"val_accuracy": 0.7, "test_accuracy": 0.6})
    make(Path("runs/search/trials/0000"), 0.2, [0.8, 0.9])
    make(Path("runs/c"), 0.1, [])
    found = find_runs([Path("runs"), Path("runs/a")])
    assert [(str(run.path), run.state) for run in found] == [
        ("runs/a", "finished"),
        ("runs/c", "no steps"),
        ("runs/search/trials/0000", "step 20"),
    ]
    assert differing_keys(found) == ["optimizer.lr"]
    assert main(["--plot", "curves.png", "--json", "runs.json"]) == 0
    listed = json.loads(Path("runs.json").read_text())
    assert [(run["path"], run["val_accuracy"]) for run in listed] == [
        ("runs/search/trials/0000", 0.9),
        ("runs/a", 0.7),
        ("runs/c", None),
    ]
    assert [run["settings"] for run in listed] == [
        {"optimizer.lr": rate} for rate in (0.2, 0.1, 0.1)
    ]
    assert Path("curves.png").read_bytes().startswith(b"\x89PNG")
    lines = capsys.readouterr().out.splitlines()
    assert "optimizer.lr" in lines[1]
    assert [word in line for word, line in zip(("0.9000", "0.7000"), lines[3:5], strict=True)] == [
        True,
        True,
    ]


def test_what_is_no_run_is_named():
    with pytest.raises(DistcnnError, match="runs is no folder"):
        main([])
    Path("runs").mkdir()
    with pytest.raises(DistcnnError, match="there is no run in runs"):
        main([])
    make(Path("runs/a"), 0.1, [0.5])
    Path("runs/a/metrics.jsonl").write_text("{\n{}\n")
    with pytest.raises(DistcnnError, match="the run runs/a is damaged"):
        main([])
