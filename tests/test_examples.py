"""The scripts in examples/ run as their docstrings say."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, as the working directory."""
    copy = tmp_path / "examples"
    shutil.copytree(ROOT / "examples", copy, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    monkeypatch.chdir(copy)
    return copy


def python(*arguments: str) -> list[str]:
    """Runs Python, and returns the lines that it printed."""
    command = [sys.executable, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def summary(run: str = "runs/quickstart") -> dict[str, Any]:
    content: dict[str, Any] = json.loads(Path(run, "summary.json").read_text())
    return content


def parameters(width: int) -> int:
    """The parameters of `own_model.net` for colour images and 10 classes."""
    return (27 + 1) * width + (9 * width + 1) * 2 * width + (2 * width + 1) * 10


def test_own_model_runs_by_itself():
    lines = python("own_model.py", "1")
    found = summary()
    assert (found["epochs"], found["parameters"]) == (1, parameters(48))
    assert lines[-1] == f"{parameters(48):,} parameters, accuracy {found['test_accuracy']:.4f}"


def test_own_model_is_trained_by_the_command():
    (command,) = re.findall(r"python (-m .*own_model:net)", Path("own_model.py").read_text())
    python(*command.split(), "--train.epochs", "1")
    assert summary()["parameters"] == parameters(32)


def test_own_callback_stops_the_run():
    lines = python("own_callback.py", "0.2")
    found = summary()
    assert found["epochs"] < 10
    assert found["val_accuracy"] >= 0.2
    rates = [float(rate) for rate in lines[-2].removeprefix("learning rates:").split()]
    assert len(rates) == found["epochs"]
    assert 0 < rates[0] <= 0.07
    expected = f"{found['epochs']} epochs, validation accuracy {found['val_accuracy']:.4f}"
    assert lines[-1] == expected


def test_python_api_trains_evaluates_and_predicts():
    lines = python("python_api.py", "1")
    found = summary()
    assert f"360 test images, accuracy {found['test_accuracy']:.4f}" in lines
    classes = [line.split()[1] for line in lines if line.startswith("class ")]
    assert classes == [str(digit) for digit in range(10)]
    images = [line.split()[0] for line in lines[-5:]]
    assert images == [f"digits/{number}_shows_{number}.png" for number in range(5)]
    for line in lines[-5:]:
        top = re.findall(r" (\d) ([01]\.\d{3})", line)
        assert len(top) == 3
        assert sorted(top, key=lambda entry: entry[1], reverse=True) == top


def test_each_example_is_short_and_says_how_to_run_it():
    for path in Path().glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 40, path
        assert f"    python {path.name}" in text.split('"""')[1], path
