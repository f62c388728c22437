"""The launch scripts for several workers: the commands they run, and the errors they report."""

import json
import os
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from distcnn.cli.parser import parse_config
from distcnn.runtime.cluster import find_cluster
from tests.conftest import ROOT

PYTHON = f"{ROOT}/.venv/bin/python"
LAUNCH = [PYTHON, "-m", "distcnn.launch"]
TRAIN = [PYTHON, "-m", "distcnn.train", "--distribute.strategy"]


def launch(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", ROOT / "launch" / name, *arguments],
        env={"PATH": os.environ["PATH"], "HOME": os.environ["HOME"], **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def dry(name: str, *arguments: str, **environment: str) -> list[str]:
    done = launch(name, "--dry-run", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


@pytest.fixture
def gpus(tmp_path: Path) -> dict[str, str]:
    """An `nvidia-smi` that finds four GPUs."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nfor i in 0 1 2 3; do echo GPU $i: Fast; done\n")
    tool.chmod(0o755)
    return {"PATH": f"{tmp_path}:{os.environ['PATH']}"}


def test_benchmark_measures_as_many_workers_as_there_are_gpus_or_cores(gpus):
    command = [PYTHON, "-m", "distcnn.benchmark"]
    compare = ["--compare", "plain"]
    assert dry("benchmark.sh", *compare, **gpus) == [*command, *compare, "--workers", "1,2,4"]
    assert dry("benchmark.sh", "--workers", "1,3") == [*command, "--workers", "1,3"]
    counts = dry("benchmark.sh")[-1].split(",")
    assert [int(count) for count in counts] == [2**n for n in range(len(counts))]
    assert int(counts[-1]) <= len(os.sched_getaffinity(0)) < 2 * int(counts[-1])


def test_multi_gpu_starts_a_worker_a_gpu(gpus):
    arguments = ["--recipe", "article", "--out", "a b"]
    train = ["train", "--distribute.strategy", "horovod"]
    assert dry("multi_gpu.sh", *arguments, **gpus) == [
        *LAUNCH,
        "--workers",
        "4",
        *train,
        *arguments,
    ]
    mirrored = [*TRAIN, "mirrored", "--distribute.devices", "4", *arguments]
    assert dry("multi_gpu.sh", *arguments, STRATEGY="mirrored", **gpus) == mirrored
    two = [*LAUNCH, "--workers", "2"]
    assert dry("multi_gpu.sh", WORKERS="2", **gpus) == [*two, *train]
    assert dry("multi_gpu.sh", CUDA_VISIBLE_DEVICES="1,3", **gpus) == [*two, *train]
    assert dry("multi_gpu.sh", WORKERS="2") == [*two, *train]
    assert dry("multi_gpu.sh", WORKERS="2", RESTARTS="0") == [*two, "--restarts", "0", *train]


def test_an_argument_that_ends_in_py_is_run_as_a_script(tmp_path, gpus):
    own = ["--precision.policy", "auto", "cats.py", "--epochs", "3"]
    run = [PYTHON, "-m", "distcnn.run"]
    assert dry("local.sh", *own)[1:] == [*run, *own]
    script = ["run", "--distribute.strategy", "horovod", *own]
    assert dry("multi_gpu.sh", *own, **gpus) == [*LAUNCH, "--workers", "4", *script]
    assert dry("multi_node.sh", "-H", "a:2", *own) == [*LAUNCH, "-H", "a:2", *script]
    slurm = dry("slurm.sbatch", *own, SLURM_SUBMIT_DIR=str(ROOT))
    assert slurm[-len(own) - 5 :] == [*run, "--distribute.strategy", "horovod", *own]


def test_multi_node_starts_a_worker_a_slot(tmp_path):
    hosts = tmp_path / "hosts"
    hosts.write_text("# the cluster\n127.0.0.1 slots=2\nnode-b:1  # the small one\n\nnode-c\n")
    own = {"STRATEGY": "multi_worker", "SSH_PORT": "2222", "SSH_KEY": "key", "NIC": "ib0"}
    settings = ["--ssh-port", "2222", "--ssh-key", "key", "--nic", "ib0"]
    train = ["train", "--distribute.strategy", "multi_worker", "--recipe", "article"]
    for where in (["--hostfile", str(hosts)], ["-H", "127.0.0.1:2,node-b:1,node-c"]):
        command = dry("multi_node.sh", *where, "--recipe", "article", **own)
        assert command == [*LAUNCH, *where, *settings, *train]
        command = [*command[:3], "--dry-run", *command[3:]]
        first = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        assert "-np 4 -H 127.0.0.1:2,node-b:1,node-c:1 --ssh-port 2222" in first
    assert "--restarts 0 train" in " ".join(dry("multi_node.sh", "-H", "a", RESTARTS="0"))


def test_multi_worker_on_this_host_alone_has_a_network_of_its_own():
    """Because TensorFlow's server listens on all interfaces."""
    allowed = subprocess.run(
        "unshare --map-root-user --net ip link set lo up 2>/dev/null", shell=True, check=False
    )
    own = dry("multi_node.sh", "-H", "localhost:2", STRATEGY="multi_worker")
    assert ("unshare" in own) == (allowed.returncode == 0)
    assert "unshare" not in dry("multi_node.sh", "-H", "localhost:2,b", STRATEGY="multi_worker")
    for environment in ({"STRATEGY": "horovod"}, {"STRATEGY": "multi_worker", "PRIVATE": "no"}):
        assert "unshare" not in dry("multi_node.sh", "-H", "localhost:2", **environment)


def test_slurm_starts_a_worker_a_task():
    command = dry("slurm.sbatch", "--recipe", "article", SLURM_SUBMIT_DIR=str(ROOT))
    assert command[0] == "srun"
    assert command[command.index(PYTHON) :] == [*TRAIN, "horovod", "--recipe", "article"]
    text = (ROOT / "launch/slurm.sbatch").read_text()
    assert "#SBATCH --requeue" in text
    assert "#SBATCH --signal=USR1@120" in text


def test_horovod_is_kept_by_what_it_was_made_of():
    said = launch("install_horovod.sh", "--dry-run").stdout
    assert "/distcnn/wheels/horovod-0.28.1-cpu-tf2.21" in said
    assert "is there" in said
    other = launch("install_horovod.sh", "--dry-run", "--cuda", "--mpi").stdout
    assert "/horovod-0.28.1-cpu-cuda-mpi-tf2.21" in other


@pytest.mark.parametrize(
    ("name", "arguments", "environment", "code", "message"),
    [
        ("multi_gpu.sh", [], {}, 1, "nvidia-smi finds no GPU; WORKERS=2 trains with two"),
        ("multi_gpu.sh", [], {"WORKERS": "x"}, 1, "WORKERS is x; expected a number"),
        ("multi_gpu.sh", [], {"WORKERS": "2", "STRATEGY": "ps"}, 2, "expected horovod or mirrored"),
        ("multi_node.sh", [], {}, 2, "no hosts were given; expected -H host1:slots"),
        ("multi_node.sh", ["-H"], {}, 2, "no hosts were given"),
        ("multi_node.sh", ["-H", "a:x"], {}, 2, "the host is a:x; expected host or host:slots"),
        ("multi_node.sh", ["--hostfile", "no"], {}, 2, "the host file no cannot be read"),
        ("multi_node.sh", ["-H", "a"], {"STRATEGY": "ps"}, 2, "expected horovod or multi_worker"),
        ("install_horovod.sh", ["--gpu"], {}, 1, "expected --cuda, --mpi or --dry-run"),
        ("install_horovod.sh", [], {"VENV": "/no"}, 1, "there is no /no/bin/python; run launch"),
    ],
)
def test_what_cannot_be_launched_is_refused(name, arguments, environment, code, message):
    done = launch(name, *arguments, **environment)
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr.startswith("error: ")
    assert message in done.stderr


def test_more_workers_than_gpus_are_refused(gpus):
    done = launch("multi_gpu.sh", WORKERS="5", **gpus)
    assert done.returncode == 1
    assert "WORKERS is 5; expected at most 4" in done.stderr


def documents(file: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((ROOT / file).read_text()))


def parsed(command: list[str]) -> Any:
    return parse_config("distcnn.train", "Trains.", command[command.index("distcnn.train") + 1 :])


def test_the_containers_of_compose_find_each_other():
    (compose,) = documents("docker/compose.yaml")
    services = compose["services"]
    for index, (name, service) in enumerate(services.items()):
        cluster = find_cluster({"TF_CONFIG": service["environment"]["TF_CONFIG"]})
        assert (cluster.rank, cluster.size) == (index, len(services))
        assert cluster.hosts == tuple(services)
        assert service["hostname"] == name
        assert parsed(service["command"]).distribute.strategy == "horovod"


@pytest.mark.parametrize("kind", ["cpu", "cuda"])
def test_images_are_pinned_small_and_without_root(kind):
    lines = (ROOT / f"docker/{kind}.Dockerfile").read_text().splitlines()
    bases = [line.split()[1] for line in lines if line.startswith("FROM")]
    assert len(bases) == 2
    assert all(":" in base and not base.endswith(":latest") for base in bases)
    users = [line for line in lines if line.startswith("USER")]
    assert users == ["USER distcnn"]
    for line in lines:
        if line.startswith("COPY") and "--from" not in line:
            assert all((ROOT / source).exists() for source in line.split()[1:-1]), line
    health = next(line for line in lines if line.startswith("HEALTHCHECK"))
    assert json.loads(health[health.index("[") :]) == ["python", "-m", "distcnn.doctor", "--quick"]
