"""The scripts in examples/ run as their docstrings say."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

EXAMPLES = ROOT / "examples"

(COMMAND,) = re.findall(r"python (-m .*own_model:net)", (EXAMPLES / "own_model.py").read_text())

SCRIPTS = {
    "own_model": ["own_model.py", "1"],
    "command": [*COMMAND.split(), "--train.epochs", "1"],
    "own_callback": ["own_callback.py", "0.2"],
    "python_api": ["python_api.py", "1"],
}
"""Arguments of Python that run each script, or the command that it names, for a short time."""


@dataclass(frozen=True)
class Example:
    """What a script printed, and the summary of the run that it made."""

    lines: list[str]
    summary: dict[str, Any]


def run(arguments: list[str], folder: Path) -> Example:
    """Runs Python in a copy of the examples."""
    shutil.copytree(EXAMPLES, folder, ignore=shutil.ignore_patterns("runs", "__pycache__"))
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "XDG_CACHE_HOME": str(folder / "cache")},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((folder / "runs/quickstart/summary.json").read_text())
    return Example(done.stdout.splitlines(), summary)


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Example]]]:
    """Runs every script; two at a time, as one leaves a core idle."""
    root = tmp_path_factory.mktemp("examples")
    with ThreadPoolExecutor(2) as executor:
        yield {
            name: executor.submit(run, arguments, root / name)
            for name, arguments in SCRIPTS.items()
        }


def parameters(width: int) -> int:
    """The parameters of `own_model.net` for colour images and 10 classes."""
    return (27 + 1) * width + (9 * width + 1) * 2 * width + (2 * width + 1) * 10


def test_own_model_runs_by_itself(examples):
    example = examples["own_model"].result()
    lines, found = example.lines, example.summary
    assert (found["epochs"], found["parameters"]) == (1, parameters(48))
    assert lines[-1] == f"{parameters(48):,} parameters, accuracy {found['test_accuracy']:.4f}"


def test_own_model_is_trained_by_the_command(examples):
    assert examples["command"].result().summary["parameters"] == parameters(32)


def test_own_callback_stops_the_run(examples):
    example = examples["own_callback"].result()
    lines, found = example.lines, example.summary
    assert found["epochs"] < 10
    assert found["val_accuracy"] >= 0.2
    rates = [float(rate) for rate in lines[-2].removeprefix("learning rates:").split()]
    assert len(rates) == found["epochs"]
    assert 0 < rates[0] <= 0.07
    expected = f"{found['epochs']} epochs, validation accuracy {found['val_accuracy']:.4f}"
    assert lines[-1] == expected


def test_python_api_trains_evaluates_and_predicts(examples):
    example = examples["python_api"].result()
    lines, found = example.lines, example.summary
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
    for path in EXAMPLES.glob("*.py"):
        text = path.read_text()
        assert len(text.splitlines()) <= 40, path
        assert f"    python {path.name}" in text.split('"""')[1], path


def test_own_script_computes_the_same_on_two_workers(tmp_path):
    outputs = []
    for prefix in (
        [],
        ["-m", "distcnn.horovodrun", "-np", "2", sys.executable, "-m", "distcnn.run"],
    ):
        done = subprocess.run(
            [sys.executable, *prefix, str(EXAMPLES / "own_script.py"), "1"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        outputs.append(re.findall(r"test loss (\S+)  test accuracy (\S+)  sum", done.stdout))
    plain, distributed = outputs
    assert len(plain) == len(distributed) == 1
    assert [float(x) for x in plain[0]] == pytest.approx(
        [float(x) for x in distributed[0]], rel=5e-3
    )
