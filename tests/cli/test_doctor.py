"""The doctor: its findings, their fixes and its exit code."""

import json
import shutil
import socket
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from distcnn import doctor
from distcnn.cli import checks
from distcnn.cli.checks import Finding
from distcnn.distribute import horovod_check


def levels(findings: Iterator[Finding]) -> dict[str, tuple[str, str, str]]:
    return {f.subject: (f.level, f.text, f.fix) for f in findings}


def test_this_machine_is_well(run_module, tmp_path):
    """End to end, with test reductions between two processes by Horovod and multi_worker."""
    report = tmp_path / "report.json"
    done = run_module("distcnn.doctor", "--json", str(report))
    assert done.returncode == 0, done.stdout + done.stderr
    found = {entry["subject"]: entry for entry in json.loads(report.read_text())}
    for subject in ("two processes, horovod", "two processes, multi_worker"):
        assert (found[subject]["level"], found[subject]["text"]) == ("ok", "they reduce correctly")
    for subject in ("python", "tensorflow", "keras", "devices", "precision", "xla", "horovod"):
        assert found[subject]["level"] == "ok"
        assert f"ok      {subject}" in done.stdout
    assert "with Gloo" in found["horovod"]["text"]
    assert found["cluster"]["text"] == "this process alone"


@pytest.mark.parametrize(
    ("name", "version", "text"),
    [
        ("keras", "3.14.0", "3.14.0; expected at least 3.15.1, below 3.16"),
        ("keras", "3.15.0", "3.15.0; expected at least 3.15.1, below 3.16"),
        ("tensorflow", "2.20.1", "2.20.1; expected at least 2.21, below 2.22"),
        ("tensorflow", "2.22.0", "2.22.0; expected at least 2.21, below 2.22"),
        ("numpy", "1.26.4", "1.26.4; expected at least 2, below 3"),
    ],
)
def test_known_bad_versions_are_named_with_their_fix(name, version, text, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == name else real(n))
    level, found, fix = levels(checks.check_versions())[name]
    assert (level, found) == ("error", text)
    assert fix.startswith(f"pip install '{name}")


@pytest.mark.parametrize(
    ("version", "level", "text"),
    [
        ("3.15.1", "ok", "3.15.1"),
        ("3.15.7", "ok", "3.15.7"),
        ("3.16.0", "warning", "3.16.0; tested with 3.15.x only"),
        ("4.0", "warning", "4.0; tested with 3.15.x only"),
    ],
)
def test_a_newer_keras_is_tried(version, level, text, monkeypatch):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: version if n == "keras" else real(n))
    found = levels(checks.check_versions())["keras"]
    assert found[:2] == (level, text)
    assert found[2] == ("" if level == "ok" else "pip install 'keras>=3.15.1,<3.16'")


def test_a_missing_package_and_another_keras_backend(monkeypatch):
    def version(name: str) -> str:
        if name == "tensorboard":
            raise metadata.PackageNotFoundError
        return real(name)

    real = metadata.version
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    found = levels(checks.check_versions())
    assert found["tensorboard"][:2] == ("error", "not installed")
    assert found["keras backend"] == ("error", "KERAS_BACKEND is jax", "unset KERAS_BACKEND")


def test_horovod_of_another_tensorflow(monkeypatch, tmp_path):
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda n: "2.99" if n == "tensorflow" else real(n))
    level, text, fix = levels(horovod_check.check_horovod())["horovod"]
    assert level == "error"
    assert text.startswith("built for TensorFlow 2.21")
    assert fix == "distcnn install-horovod rebuilds it"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert levels(horovod_check.check_horovod())["horovod"][0] == "warning"


def test_gpus_without_nccl_or_without_tensorflows_libraries(monkeypatch):
    monkeypatch.setattr(checks, "count_visible_gpus", lambda: 2)
    monkeypatch.setattr(horovod_check, "count_nvidia_gpus", lambda: 2)
    assert levels(horovod_check.check_horovod())["horovod"][2] == "distcnn install-horovod --cuda"
    found = next(checks.check_hardware())
    assert (found.level, found.text) == ("error", "nvidia-smi finds 2 GPUs, TensorFlow 0")
    assert "pip install 'tensorflow[and-cuda]" in found.fix


def test_the_cluster_as_seen():
    rank_1 = {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2"}
    rank_1 |= {"HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2"}
    found = levels(checks.check_cluster(rank_1))
    assert found["cluster"][1] == "rank 1 of 2, according to horovod"
    broken = levels(checks.check_cluster({"HOROVOD_RANK": "1"}))
    assert broken["cluster"][0] == "error"
    assert "HOROVOD_SIZE is not set" in broken["cluster"][1]


def test_a_contradiction_does_not_keep_the_doctor_away(run_module, monkeypatch):
    monkeypatch.setenv("TF_CONFIG", "{")
    done = run_module("distcnn.doctor", "--quick")
    assert done.returncode == 1
    assert "error   cluster                     TF_CONFIG cannot be read" in done.stdout
    assert "ok      disk for runs" in done.stdout


def test_hosts_and_ports():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        workers = [f"127.0.0.1:{port}", "nowhere.invalid:1"]
        task = {"type": "worker", "index": 0}
        text = json.dumps({"cluster": {"worker": workers}, "task": task})
        found = levels(checks.check_cluster({"TF_CONFIG": text}))
    assert found["hosts"][0] == "error"
    assert found["hosts"][1].startswith("nowhere.invalid cannot be found")
    assert found["ports"][:2] == ("error", f"port {port} cannot be used: Address already in use")


def test_storage(monkeypatch, tmp_path):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=10**9))
    monkeypatch.setattr(checks, "count_nvidia_gpus", lambda: 2)
    monkeypatch.setattr(horovod_check, "count_nvidia_gpus", lambda: 2)
    found = levels(checks.check_storage())
    assert found["disk for runs"] == (
        "warning",
        f"1.0 GB free in {Path.cwd()}",
        "free some disk space",
    )
    monkeypatch.setattr("os.access", lambda place, mode: False)
    assert levels(checks.check_storage())["disk for the cache"][0] == "error"


def test_processes_that_do_not_reduce_are_reported(monkeypatch):
    monkeypatch.setattr(checks.sys, "executable", "/bin/false")
    (found,) = checks.check_reduction("horovod")
    assert (found.level, found.text) == ("error", "no message")


def test_an_error_means_exit_1_and_shows_the_fix(monkeypatch, capsys):
    def sick() -> Iterator[Finding]:
        yield Finding("keras", "error", "3.0", "pip install something newer")

    monkeypatch.setattr(doctor, "check_versions", sick)
    assert doctor.main(["--quick"]) == 1
    out = capsys.readouterr().out
    assert "error   keras" in out
    assert "-> pip install something newer" in out


def test_the_probe_is_refused_what_the_backend_is_refused(monkeypatch: Any):
    from distcnn import probe

    monkeypatch.setenv("TF_CONFIG", "{")
    with pytest.raises(Exception, match="TF_CONFIG cannot be read"):
        probe.main([])
