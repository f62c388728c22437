"""A real Slurm, started by hand: recipes and a script, job arrays, and a node that is lost.

This machine stands for three nodes: `one` and `two` with two cores and two GPUs, which are no real
ones, and `small` with one of each.
"""

import functools
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
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


def call(*command: str, timeout: float = 60, cwd: Path = ROOT, **environment: str) -> str:
    done = subprocess.run(
        command,
        cwd=cwd,
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
        self._lost = ""

    def call(self, *command: str) -> str:
        return call(*command, SLURM_CONF=self._config)

    def srun(self, *command: str) -> str:
        """Runs a job step of two tasks."""
        return call("srun", "-n2", *command, timeout=300, SLURM_CONF=self._config)

    def submit(
        self,
        edits: dict[str, str],
        *arguments: str,
        flags: Sequence[str] = (),
        cwd: Path = ROOT,
        strategy: str = "horovod",
        venv: str = "",
    ) -> str:
        """Submits the script, edited as its header says; returns the job's number.

        Args:
            edits: Other lines of the script, by their text.
            *arguments: Those of the script.
            flags: Those of `sbatch`.
            cwd: The folder to submit from.
            strategy: The strategy.
            venv: The environment, if it is not that of the folder.
        """
        text = (ROOT / "launch/slurm.sbatch").read_text()
        for old, new in {**edits, "slurm-%j.log": f"{self._folder}/%j.log"}.items():
            assert old in text
            text = text.replace(old, new)
        script = self._folder / "job.sbatch"
        script.write_text(text)
        command = ("sbatch", "--parsable", *flags, str(script), *arguments)
        return call(*command, cwd=cwd, SLURM_CONF=self._config, STRATEGY=strategy, VENV=venv)

    def sbatch(
        self, strategy: str, *arguments: str, disturbances: Sequence["Disturbance"] = ()
    ) -> str:
        """Submits a job of two tasks on one node, waits for its end and returns what it printed.

        Args:
            strategy: The strategy.
            *arguments: The script's arguments.
            disturbances: What happens to it: each at a text that the job prints.
        """
        edits = {
            "--nodes=2": "--nodes=1",
            "--ntasks-per-node=4": "--ntasks-per-node=2",
            "#SBATCH --gpus-per-node=4\n": "",
            "--cpus-per-task=8": "--cpus-per-task=1",
        }
        job = self.submit(edits, *arguments, strategy=strategy)
        left = list(disturbances)
        printed = self.wait(job, left)
        assert not left
        return printed

    def fields(self, job: str) -> dict[str, str]:
        """Returns what Slurm knows of a job, or of a task of an array."""
        state = self.call("scontrol", "--oneliner", "show", "job", job)
        return dict(f.split("=", 1) for f in state.split() if "=" in f)

    def printed(self, job: str) -> str:
        log = self._folder / f"{self.fields(job)['JobId']}.log"
        return log.read_text() if log.exists() else ""

    def wait(self, job: str, disturbances: "list[Disturbance]") -> str:
        """Waits for the end of a job, and returns what it has printed."""
        deadline = time.monotonic() + 300
        while True:
            fields, printed = self.fields(job), self.printed(job)
            if fields["JobState"] in ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT"):
                assert fields["JobState"] == "COMPLETED", printed
                return printed
            if disturbances and re.search(disturbances[0][0], printed):
                disturbances.pop(0)[1](self, job)
            assert time.monotonic() < deadline, f"{fields}\n{printed}"
            time.sleep(0.5)

    def warn(self, job: str) -> None:
        """Signals a job as Slurm itself does two minutes before the time limit."""
        self.call("scancel", "--signal=USR1", job)

    def lose_node(self, job: str) -> None:
        """Takes the node of a job down, for good."""
        self._lost = self.fields(job)["NodeList"]
        for state in ("drain", "down"):
            self._set(state)

    def repair_node(self) -> None:
        """Makes the lost node usable again."""
        self._set("resume")

    def _set(self, state: str) -> None:
        self.call("scontrol", "update", f"nodename={self._lost}", f"state={state}", "reason=test")


Disturbance = tuple[str, Callable[[Slurm, str], None]]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator["Slurm"]:
    """Starts munge and Slurm with a configuration of their own.

    A job that goes back into the queue is held until its old credential expires: here 5 s.
    """
    require("munged", "slurmctld", "slurmd", "sbatch", "srun", "unshare")
    folder = tmp_path_factory.mktemp("slurm")
    folder.chmod(0o755)
    host = socket.gethostname().split(".")[0]
    controller, *ports = free_ports(4)
    key = folder / "munge.key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)
    names = ("one", "two", "small")
    for name in ("state", "munge", *(f"spool-{name}" for name in names)):
        (folder / name).mkdir(mode=0o755)
    nodes = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cores} "
        f"Gres=gpu:{cores} State=UNKNOWN"
        for name, port, cores in zip(names, ports, (2, 2, 1), strict=True)
    )
    config = folder / "slurm.conf"
    config.write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmctldPort={controller}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5
ReturnToService=2
MpiDefault=none
MinJobAge=300
GresTypes=gpu
{nodes}
PartitionName=all Nodes=one,two Default=YES MaxTime=INFINITE State=UP
PartitionName=unequal Nodes=one,small MaxTime=INFINITE State=UP
"""
    )
    devices = {"one": "zero,full", "two": "zero,full", "small": "zero"}  # any files stand for GPUs
    gpus = [
        f"NodeName={name} Name=gpu File=/dev/{device}"
        for name, listed in devices.items()
        for device in listed.split(",")
    ]
    (folder / "gres.conf").write_text("\n".join(gpus) + "\n")
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(names)}\n")
    environment = {**os.environ, "PATH": SEARCH, "SLURM_CONF": str(config)}
    munged = [
        *("munged", "--foreground", "--force", "--key-file", str(key)),
        *("--socket", f"{folder}/munge/socket", "--pid-file", f"{folder}/munge/pid"),
        *("--log-file", f"{folder}/munge/log", "--seed-file", f"{folder}/munge/seed"),
    ]
    daemons = []
    try:
        slurmds = [["slurmd", "-D", "-N", name] for name in names]
        for number, words in enumerate((munged, ["slurmctld", "-D"], *slurmds)):
            # In a file system of their own, where the names of the nodes are known.
            mount = f"mount --bind {folder}/hosts /etc/hosts && exec {shlex.join(words)}"
            command = ["unshare", "--mount", "sh", "-c", mount]
            with (folder / f"daemon-{number}.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(1 if number < 2 else 0)
        deadline = time.monotonic() + 60
        idle = ("sinfo", "--noheader", "-N", "-t", "idle")
        while len(set(call(*idle, SLURM_CONF=str(config)).split()) & set(names)) < len(names):
            assert time.monotonic() < deadline, (folder / "daemon-1.log").read_text()
            time.sleep(0.5)

        yield Slurm(folder, str(config))
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
            daemon.wait()
        for name in names:
            shutil.rmtree(folder / f"spool-{name}", ignore_errors=True)


def quickstart(out: Path) -> list[str]:
    return ["--recipe", "quickstart", "--train.epochs", "3", "--out", str(out)]


def test_sbatch_goes_on_after_the_time_limit_and_on_another_node(slurm, tmp_path):
    out = tmp_path / "horovod"
    # The first resumed step is 40 or a few more; the node is lost in the last of the three epochs.
    disturbances = [(r"step +40/", Slurm.warn), (r"step +100/", Slurm.lose_node)]
    printed = slurm.sbatch("horovod", *quickstart(out), disturbances=disturbances)
    slurm.repair_node()
    assert "horovod on CPU (set in the configuration): 2 workers" in printed
    assert printed.count("0: stopped by SIGUSR1 after step") == 1
    assert "stopped after saving; requeueing the job" in printed
    assert "Node failure on" in printed
    assert printed.count("0: resumed") == 2
    assert "\n1: " not in printed.replace("\n1: error", "")
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["strategy"], summary["world_size"]) == ("horovod", 2)
    assert summary["weights_agree"] is True
    undisturbed = tmp_path / "undisturbed"
    launcher = [sys.executable, "-m", "distcnn.horovodrun", "--gloo", "-np", "2", sys.executable]
    call(*launcher, "-m", "distcnn.train", *quickstart(undisturbed), timeout=300)
    expected = json.loads((undisturbed / "summary.json").read_text())
    assert summary["weights_sha256"] == expected["weights_sha256"]
    assert summary["test_accuracy"] == expected["test_accuracy"]
    assert summary["accuracy"] >= 0.9  # about 0.96


def test_sbatch_trains_by_multi_worker(slurm, tmp_path):
    out = tmp_path / "multi_worker"
    printed = slurm.sbatch("multi_worker", *quickstart(out))
    assert "multi_worker on CPU (set in the configuration): 2 workers" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["strategy"], summary["weights_agree"]) == ("multi_worker", True)
    assert summary["accuracy"] >= 0.9  # about 0.96


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


PYTHON = f"""#!{sys.executable}
import os, sys
sys.path.insert(0, {str(ROOT)!r})
from distcnn.runtime.cluster import find_cluster
cluster, restarts = find_cluster(os.environ), int(os.environ.get("SLURM_RESTART_COUNT", 0))
gpu = os.environ.get("CUDA_VISIBLE_DEVICES")
print("RANK", cluster.rank, cluster.local_rank, ",".join(cluster.hosts), gpu, *sys.argv[-2:])
sys.exit(75 if os.environ.get("SLURM_ARRAY_TASK_ID") == "1" and not restarts else 0)
"""
"""Stands for distcnn: says which rank it is; the first task of an array has to save once."""


def test_unequal_nodes_gpus_of_each_task_and_a_job_array(slurm, tmp_path):
    program = tmp_path / "venv/bin/python"
    program.parent.mkdir(parents=True)
    program.write_text(PYTHON)
    program.chmod(0o755)
    submit = functools.partial(slurm.submit, cwd=tmp_path, venv=str(tmp_path / "venv"))
    small = {"--cpus-per-task=8": "--cpus-per-task=1", "--gpus-per-node=4": "--gpus-per-task=1"}
    one = {**small, "--nodes=2": "--nodes=1", "--ntasks-per-node=4": "--ntasks=1"}
    array = submit(one, "--out", "runs/%a", flags=["--array=0-1"])
    three = {**small, "--ntasks-per-node=4": "--ntasks=3"}
    printed = slurm.wait(submit(three, "--out", "x", flags=["--partition=unequal"]), [])
    ranks = sorted(re.findall(r"\d: RANK (.*)", printed))
    hosts = "one,one,small"
    assert ranks == [f"0 0 {hosts} 0 --out x", f"1 1 {hosts} 1 --out x", f"2 0 {hosts} 0 --out x"]
    tasks = [slurm.wait(f"{array}_{number}", []) for number in range(2)]
    assert [each.count("RANK") for each in tasks] == [1, 2]
    assert [slurm.fields(f"{array}_{number}")["Restarts"] for number in range(2)] == ["0", "1"]
    for number, each in enumerate(tasks):
        assert each.count(f"--out runs/{number}\n") == each.count("RANK")


def result_in(printed: str) -> list[np.ndarray]:
    """Returns the metrics of both fits, by name, and the weights, as the script prints them."""
    lines = [line.partition("RESULT ")[2] for line in printed.splitlines() if "RESULT" in line]
    return [np.array(json.loads(line)) for line in lines]
