"""What could keep a training from working on this machine: findings, each with its fix."""

import importlib.util
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from distcnn.config import PrecisionConfig
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster, ClusterError, find_cluster

Level = Literal["ok", "warning", "error"]

_EXPECTED = {
    "tensorflow": ((2, 21), (2, 22), "pip install 'tensorflow~=2.21.0'"),
    "keras": ((3, 15, 1), (3, 16), "pip install 'keras>=3.15.1,<3.16'"),
    "numpy": ((2,), (3,), "pip install 'numpy>=2,<3'"),
    "tensorboard": ((2, 21), (2, 22), "pip install 'tensorboard~=2.21.0'"),
}
"""Versions from (inclusive) and to (exclusive), and what mends another one. Keras before 3.15.1
runs code and follows paths out of a model file that it loads."""

_MAY_BE_NEWER = {"keras": "3.15.x"}
"""Packages whose newer versions are likely to work, and what was tried."""

_ENOUGH_DISK = 2 * 10**9
_ENOUGH_SHARED_MEMORY = 256 * 10**6
_PROBE_SECONDS = 120


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        subject: What was looked at.
        level: ok, warning (training works, but not as it could) or error (it would not work).
        text: What was found.
        fix: What to do, empty if nothing.
    """

    subject: str
    level: Level
    text: str
    fix: str = ""


def check_versions() -> Iterator[Finding]:
    """Looks at Python and the packages."""
    python = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    fix = "make .venv anew with PYTHON=python3.11 launch/install.sh" if old else ""
    yield Finding("python", "error" if old else "ok", python, fix)
    for name, (low, high, remedy) in _EXPECTED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Finding(name, "error", "not installed", remedy)
            continue
        number = tuple(map(int, re.findall(r"\d+", found)[:3]))
        if low <= number < high:
            yield Finding(name, "ok", found)
        elif number >= high and name in _MAY_BE_NEWER:
            tried = f"{found}; tried with {_MAY_BE_NEWER[name]} only"
            yield Finding(name, "warning", tried, remedy)
        else:
            wanted = f"{'.'.join(map(str, low))} to below {'.'.join(map(str, high))}"
            yield Finding(name, "error", f"{found}; expected {wanted}", remedy)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        yield Finding(
            "keras backend", "error", f"KERAS_BACKEND is {backend}", "unset KERAS_BACKEND"
        )


def check_hardware() -> Iterator[Finding]:
    """Looks at devices, and at what precision and XLA would be chosen."""
    import tensorflow as tf

    from distcnn.runtime.precision import find_hardware, resolve_precision

    gpus = tf.config.list_physical_devices("GPU")
    seen = _nvidia_gpus()
    if len(gpus) < seen and os.environ.get("CUDA_VISIBLE_DEVICES") is None:
        yield Finding(
            "devices",
            "error",
            f"nvidia-smi finds {seen} GPUs, TensorFlow {len(gpus)}",
            "pip install 'tensorflow[and-cuda]~=2.21.0' installs TensorFlow's CUDA libraries",
        )
    cores = len(os.sched_getaffinity(0))
    hardware = find_hardware()
    names = f"{len(gpus)} GPUs ({hardware.gpu})" if gpus else "no GPU"
    yield Finding("devices", "ok", f"{names}, {cores} cores")
    resolved = resolve_precision(PrecisionConfig(), hardware)
    yield Finding("precision", "ok", f"{resolved.policy} ({resolved.policy_reason})")
    yield Finding("xla", "ok", f"{'on' if resolved.xla else 'off'} ({resolved.xla_reason})")


def check_horovod() -> Iterator[Finding]:
    """Looks at Horovod's build."""
    spec = importlib.util.find_spec("horovod")
    if spec is None or not spec.submodule_search_locations:
        yield Finding(
            "horovod",
            "warning",
            "not installed; several processes would train by multi_worker",
            "distcnn install-horovod",
        )
        return
    file = Path(spec.submodule_search_locations[0]) / "metadata.json"
    built_for = json.loads(file.read_text()).get("tensorflow") if file.exists() else None
    present = metadata.version("tensorflow")
    if built_for != present:
        text = f"built for TensorFlow {built_for}, but {present} is installed"
        yield Finding("horovod", "error", text, "distcnn install-horovod builds it anew")
        return
    from distcnn.distribute.horovod import import_horovod

    try:
        hvd = import_horovod()
    except DistcnnError as error:
        yield Finding("horovod", "error", str(error), "distcnn install-horovod")
        return
    parts = {"Gloo": hvd.gloo_built(), "NCCL": hvd.nccl_built(), "MPI": hvd.mpi_built()}
    text = (
        f"{metadata.version('horovod')} with {', '.join(n for n, built in parts.items() if built)}"
    )
    if _nvidia_gpus() and not parts["NCCL"]:
        fix = "distcnn install-horovod --cuda"
        yield Finding("horovod", "warning", f"{text}; GPUs would reduce over the host", fix)
    else:
        yield Finding("horovod", "ok", text)


def check_cluster(environment: Mapping[str, str], *, ports: bool = True) -> Iterator[Finding]:
    """Looks at the cluster as the environment describes it, and at its hosts.

    Args:
        environment: Environment variables.
        ports: Whether to try this process's port too, which a running training holds.
    """
    try:
        cluster = find_cluster(environment)
    except ClusterError as error:
        yield Finding("cluster", "error", str(error), "correct the environment that it names")
        return
    text = "this process alone"
    if cluster.size > 1:
        text = f"rank {cluster.rank} of {cluster.size}, as {cluster.scheme} says"
    yield Finding("cluster", "ok", text)
    yield from _check_hosts(cluster)
    if ports:
        yield from _check_port(_own_port(cluster))


def _check_hosts(cluster: Cluster) -> Iterator[Finding]:
    for host in dict.fromkeys(cluster.hosts or ()):
        try:
            socket.getaddrinfo(host, None)
        except OSError as error:
            fix = "correct the host list, /etc/hosts or DNS"
            yield Finding("hosts", "error", f"{host} cannot be found: {error}", fix)


def _own_port(cluster: Cluster) -> int:
    """Returns the port that this process will listen at, or 0 if any will do."""
    if cluster.size == 1 or cluster.hosts is None or cluster.scheme == "horovod":
        return 0
    return int(cluster.worker_addresses(None)[cluster.rank].rpartition(":")[2])


def _check_port(port: int) -> Iterator[Finding]:
    try:
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", port))
            listener.listen()
            port = listener.getsockname()[1]
            with socket.create_connection(("127.0.0.1", port), timeout=5):
                pass
    except OSError as error:
        fix = "end the process that listens there, or give another --distribute.port"
        yield Finding("ports", "error", f"port {port} cannot be used: {error.strerror}", fix)
    else:
        yield Finding("ports", "ok", f"connects to itself at 127.0.0.1:{port}")


def check_storage() -> Iterator[Finding]:
    """Looks at the disk of the run directories and of the cache, and at shared memory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for name, folder in (("disk for runs", Path.cwd()), ("disk for the cache", cache)):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        text = f"{free / 1e9:.1f} GB free in {place}"
        if not os.access(place, os.W_OK):
            fix = "work in another folder, or set XDG_CACHE_HOME"
            yield Finding(name, "error", f"{place} cannot be written", fix)
        elif free < _ENOUGH_DISK:
            yield Finding(name, "warning", text, "free some space")
        else:
            yield Finding(name, "ok", text)
    shared = Path("/dev/shm")
    if shared.exists() and _nvidia_gpus() > 1:
        free = shutil.disk_usage(shared).free
        low = free < _ENOUGH_SHARED_MEMORY
        yield Finding(
            "shared memory",
            "warning" if low else "ok",
            f"{free / 1e6:.0f} MB free in {shared}, which NCCL uses",
            "start the container with --shm-size=1g" if low else "",
        )


def check_reduction(strategy: Literal["horovod", "multi_worker"]) -> Iterator[Finding]:
    """Lets two processes reduce for real, over loopback."""
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        ports = [each.getsockname()[1] for each in (first, second)]
    workers = [f"127.0.0.1:{port}" for port in ports]
    command = [sys.executable, "-m", "distcnn.probe", "--distribute.strategy", strategy]
    launcher = ("HOROVOD_", "SLURM_", "OMPI_", "PMI", "JOB_COMPLETION", "DISTCNN_HOSTS")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(launcher)}
    processes = []
    for rank in range(2):
        task = {"type": "worker", "index": rank}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        processes.append(
            subprocess.Popen(
                command,
                env={**clean, "TF_CONFIG": config, "CUDA_VISIBLE_DEVICES": ""},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    errors = []
    for process in processes:
        try:
            _, printed = process.communicate(timeout=_PROBE_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            printed = f"error: no answer within {_PROBE_SECONDS} s"
            process.communicate()
        if process.returncode != 0:
            errors.append((printed.strip().splitlines() or ["no message"])[-1])
    subject = f"two processes, {strategy}"
    if errors:
        fix = "a firewall on loopback, or a broken build: distcnn install-horovod"
        yield Finding(subject, "error", errors[0].removeprefix("error: "), fix)
    else:
        yield Finding(subject, "ok", "they reduce")


def _nvidia_gpus() -> int:
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU") for line in done.stdout.splitlines())
