"""The example for Ray, on a local Ray: the same weights on both workers, and as on a single one."""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import PYTHONPATH, ROOT

RESULT = re.compile(r"rank (\d) of (\d): loss (\S+)  weights (\S+)")


def train(folder: Path, workers: int) -> list[tuple[float, ...]]:
    """Runs the example; returns the rank, the number of workers, the loss and weights of each."""
    quiet = {"RAY_USAGE_STATS_ENABLED": "0", "HOME": str(folder)}
    with tempfile.TemporaryDirectory() as short:  # Ray's sockets need a short path
        done = subprocess.run(
            [sys.executable, ROOT / "examples/ray_train.py", str(workers)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": PYTHONPATH, "RAY_TMPDIR": short, **quiet},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert done.returncode == 0, done.stderr
    found = set(RESULT.findall(done.stdout + done.stderr))  # Ray shows a line once or twice
    return sorted(tuple(map(float, each)) for each in found)


def test_two_workers_of_ray_train_in_lockstep(tmp_path):
    pytest.importorskip("ray.train", reason='pip install "ray[train]" tests on Ray')
    (first, second), (alone,) = train(tmp_path, 2), train(tmp_path, 1)
    assert (first[:2], second[:2], alone[:2]) == ((0, 2), (1, 2), (0, 1))
    assert first[2:] == second[2:]
    assert first[2:] == pytest.approx(alone[2:], rel=1e-5)
