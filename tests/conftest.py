"""What tests share: the environment of the commands, and small runs."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

PYTHONPATH = f"{ROOT / 'tests/runtime/startup'}:{ROOT}"

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "2"
os.environ["PYTHONPATH"] = PYTHONPATH
# Hundreds of processes import the same modules; each would compile them again.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

Command = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs every test in a folder of its own, with a cache of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def run_module() -> Command:
    """Runs `python -m MODULE ARGUMENT...` as a user would, and returns what it did."""

    def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)

    return run
