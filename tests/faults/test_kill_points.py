"""A sample of the campaign that kills a run before its file operations."""

import random
import subprocess
import sys

from tests.conftest import ROOT


def test_a_run_survives_a_kill_before_any_file_operation(tmp_path):
    seed = str(random.SystemRandom().randrange(10**6))
    flags = ("--case", "early_stopping", "--points", "3", "--seed", seed, "--folder", str(tmp_path))
    command = [sys.executable, "-m", "tests.faults.kill_points", *flags]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tried    3  survived    3" in done.stdout
