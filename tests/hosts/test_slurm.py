"""A real Slurm of this machine alone, started by hand: recipes and a script, sbatch and srun."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from tests.hosts.conftest import SEARCH, require
from tests.lockstep.groups import free_ports

SCRIPT = """
import keras
import numpy as np

keras.utils.set_random_seed(7)
rng = np.random.default_rng(0)
x, y = rng.normal(size=(90, 6)).astype("float32"), rng.integers(0, 3, 90)
model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(3)])
loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
model.compile("adam", loss, metrics=["accuracy"])
first = model.fit(x, y, batch_size=16, epochs=2, verbose=0)
model.compile(keras.optimizers.SGD(0.1), loss, metrics=["accuracy"])
second = model.fit(x, y, batch_size=32, epochs=2, validation_split=0.2, verbose=0)
metrics = [h.history[name] for h in (first, second) for name in sorted(h.history)]
for array in [*metrics, *model.get_weights()]:  # a line each: --label breaks lines at 1024 bytes
    print("RESULT", np.asarray(array).tolist())
"""


def call(*command: str, timeout: float = 60, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=ROOT,
        env={**os.environ, "PATH": SEARCH, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout.strip()


class Slurm:
    """Runs jobs on a started Slurm."""

    def __init__(self, folder: Path, config: str) -> None:
        self._folder = folder
        self._config = config

    def srun(self, *command: str) -> str:
        """Runs a job step of two tasks."""
        return call("srun", "-n2", *command, timeout=300, SLURM_CONF=self._config)

    def sbatch(self, strategy: str, *arguments: str, signal_at: int | None = None) -> str:
        """Submits the script, edited for this machine as its header says, and waits for its end."""
        text = (ROOT / "launch/slurm.sbatch").read_text()
        script = self._folder / "job.sbatch"
        edited = text.replace("--nodes=2", "--nodes=1")
        edited = edited.replace("--ntasks-per-node=4", "--ntasks-per-node=2")
        edited = edited.replace("#SBATCH --gpus-per-node=4\n", "")
        edited = edited.replace("--cpus-per-task=8", "--cpus-per-task=1")
        edited = edited.replace("slurm-%j.log", f"{self._folder}/%j.log")
        script.write_text(edited)
        job = call(
            *("sbatch", "--parsable", str(script), *arguments),
            SLURM_CONF=self._config,
            STRATEGY=strategy,
        )
        return self._wait_for(job, signal_at)

    def _wait_for(self, job: str, signal_at: int | None) -> str:
        log = self._folder / f"{job}.log"
        deadline = time.monotonic() + 300
        signalled = False
        while True:
            show = ("scontrol", "--oneliner", "show", "job", job)
            state = call(*show, SLURM_CONF=self._config)
            fields = dict(f.split("=", 1) for f in state.split() if "=" in f)
            printed = log.read_text() if log.exists() else ""
            if fields["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
                assert fields["JobState"] == "COMPLETED", printed
                return printed
            if signal_at is not None and not signalled and f"step {signal_at:>6}/" in printed:
                # As Slurm itself does two minutes before the time limit.
                call("scancel", "--signal=USR1", job, SLURM_CONF=self._config)
                signalled = True
            assert time.monotonic() < deadline, f"{state}\n{printed}"
            time.sleep(0.5)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Slurm"]:
    """Starts munge and Slurm with a configuration of their own.

    A job that goes back into the queue is held until its old credential expires: here 5 s.
    """
    require("munged", "slurmctld", "slurmd", "sbatch", "srun")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    controller, node = free_ports(2)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    for name in ("state", "spool", "munge"):
        (folder / name).mkdir(mode=0o755)
    config = folder / "slurm.conf"
    config.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
SlurmdPort={node}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5
ReturnToService=2
MpiDefault=none
MinJobAge=300
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
"""
    )
    environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(config)}
    munged = [
        *("munged", "--foreground", "--force", "--key-file", str(key)),
        *("--socket", f"{folder}/munge/socket", "--pid-file", f"{folder}/munge/pid"),
        *("--log-file", f"{folder}/munge/log", "--seed-file", f"{folder}/munge/seed"),
    ]
    daemons = []
    try:
        for number, command in enumerate((munged, ["slurmctld", "-D"], ["slurmd", "-D"])):
            with (folder / f"daemon-{number}.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(1)
        deadline = time.monotonic() + 60
        while "idle" not in call("sinfo", "--noheader", "-o", "%T", SLURM_CONF=str(config)):
            assert time.monotonic() < deadline, (folder / "daemon-1.log").read_text()
            time.sleep(0.5)

        yield Slurm(folder, str(config))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        shutil.rmtree(folder / "spool", ignore_errors=True)


def quickstart(out: Path) -> list[str]:
    return ["--recipe", "quickstart", "--train.epochs", "3", "--out", str(out)]


def test_sbatch_trains_by_horovod_and_goes_on_after_the_time_limit(slurm, tmp_path):
    out = tmp_path / "horovod"
    printed = slurm.sbatch("horovod", *quickstart(out), signal_at=40)
    assert "horovod on CPU (set in the configuration): 2 workers" in printed
    assert printed.count("0: stopped by SIGUSR1 after step") == 1
    assert "stopped after saving; requeueing the job" in printed
    assert "0: resumed" in printed
    assert "\n1: " not in printed.replace("\n1: error", "")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["strategy"], summary["world_size"]) == ("horovod", 2)
    assert summary["weights_agree"] is True
    assert summary["test_accuracy"] >= 0.75  # about 0.95


def test_sbatch_trains_by_multi_worker(slurm, tmp_path):
    out = tmp_path / "multi_worker"
    printed = slurm.sbatch("multi_worker", *quickstart(out))
    assert "multi_worker on CPU (set in the configuration): 2 workers" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["strategy"], summary["weights_agree"]) == ("multi_worker", True)
    assert summary["test_accuracy"] >= 0.75  # about 0.95


def test_a_script_under_srun_and_sbatch_computes_what_plain_python_does(slurm, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    expected = result_in(call(sys.executable, str(script), timeout=300))
    assert len(expected) == 2 + 4 + 4
    step = slurm.srun(sys.executable, "-m", "distcnn.run", str(script))
    job = slurm.sbatch("horovod", str(script))
    for printed in (step, job):
        mine = result_in(printed)
        assert len(mine) == len(expected), printed
        for array, plain in zip(mine, expected, strict=True):
            np.testing.assert_allclose(array, plain, atol=1e-5)


def result_in(printed: str) -> list[np.ndarray]:
    """Returns the metrics of both fits, by name, and the weights, as the script prints them."""
    lines = [line.partition("RESULT ")[2] for line in printed.splitlines() if "RESULT" in line]
    return [np.array(json.loads(line)) for line in lines]
