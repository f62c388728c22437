"""The kit on a machine without a GPU: it skips every check, and its checks can be executed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.conftest import ROOT
from tests.gpu import kit
from tests.gpu.checking import Machine

SMI = """#!/bin/sh
case "$*" in
*query*) echo "NVIDIA A100-SXM4-40GB, 550.54.15, 40960, 8.0" ;;
*) echo "GPU 0: NVIDIA A100-SXM4-40GB (UUID: GPU-1)"; echo "  MIG 1g.5gb Device 0: (UUID: MIG-7)" ;;
esac
"""


def test_without_a_gpu_every_check_is_skipped_and_said_so():
    environment = {**os.environ, "PATH": "/usr/bin:/bin", "PYTHON": "python3"}
    script = ROOT / "tests/gpu/run.sh"
    done = subprocess.run(
        [script], env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    *skipped, last = done.stdout.splitlines()
    assert [line.split()[:2] for line in skipped] == [["skip", each.name] for each in kit.CHECKS]
    assert last == (
        f"all {len(kit.CHECKS)} checks were skipped: nvidia-smi finds no GPU on this machine"
    )
    assert not Path("gpu-report").exists()


def test_checks_run_on_a_cpu_and_are_reported(capsys):
    arguments = ["--device=cpu", "--only=policy,loss-scaling,mig,nccl", "--out=report"]
    assert kit.main(arguments) == 0
    results = json.loads(Path("report/results.json").read_text())["results"]
    found = {each["name"]: each["outcome"] for each in results}
    assert found == {"policy": "pass", "loss-scaling": "pass", "mig": "skip", "nccl": "skip"}
    report = Path("report/report.md").read_text()
    assert re.search(
        r"^\| policy \| .* \| pass \| (mixed_bfloat16|float32) \(the CPU", report, re.M
    )
    assert (
        "| loss-scaling | a step that overflows updates nothing | lockstep | pass | the" in report
    )
    assert "| skip | needs 2 GPUs, there is 1 | 0 |" in report
    assert "0 of 4 failed" in capsys.readouterr().out


def test_a_claim_that_does_not_hold_fails_the_kit(monkeypatch, capsys):
    monkeypatch.setattr(
        "tests.gpu.checking.Bench.train", lambda *_, **__: {"device": "GPU", "weights": 1}
    )
    monkeypatch.setattr("tests.gpu.checking.Bench.run", lambda *_, **__: "")
    assert kit.main(["--device=cpu", "--only=devices,learning-rates", "--out=report"]) == 1
    results = json.loads(Path("report/results.json").read_text())["results"]
    assert [each["outcome"] for each in results] == ["fail", "fail"]
    assert "FileNotFoundError" in results[1]["figure"]
    assert "2 of 2 failed" in capsys.readouterr().out


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's signal of a parent's death")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize(("check", "runs"), [("policy", 1), ("shared-gpu", 2)])
def test_nothing_outlives_the_kit(number, check, runs):
    command = [sys.executable, "-m", "tests.gpu.kit", "--device=cpu", f"--only={check}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with psutil.Popen(command, env=environment) as process:
        while len(children := process.children(recursive=True)) < runs:
            assert process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        code = process.wait(timeout=60)
    _, alive = psutil.wait_procs(children, timeout=5)
    for child in alive:
        child.kill()
    assert not alive
    assert code == (143 if number == signal.SIGTERM else -number)


def test_the_machine_is_what_the_driver_lists(tmp_path, monkeypatch):
    program = tmp_path / "nvidia-smi"
    program.write_text(SMI)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    assert Machine.detect() == Machine(
        ("NVIDIA A100-SXM4-40GB",), "550.54.15", 40960, (8, 0), ("MIG-7",)
    )


def test_every_check_names_a_page_that_exists(capsys):
    assert kit.main(["--list"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == len(kit.CHECKS)
    assert len({check.name for check in kit.CHECKS}) == len(kit.CHECKS)
    for check in kit.CHECKS:
        page = ROOT / ("README.md" if check.page == "README" else f"docs/{check.page}.md")
        assert page.exists(), check.page


@pytest.mark.parametrize("names", ["policy,nothing"])
def test_an_unknown_check_is_refused(names, capsys):
    assert kit.main([f"--only={names}"]) == 2
    assert "there is no check nothing" in capsys.readouterr().err
