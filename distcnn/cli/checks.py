"""The doctor's checks: each yields findings about this machine, problems with their fix."""

import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path

from distcnn.config import PrecisionConfig
from distcnn.distribute.launching import tf_config, unplaced_environment
from distcnn.runtime.cluster import Cluster, ClusterError, find_cluster
from distcnn.runtime.finding import Finding
from distcnn.runtime.nvidia import count_nvidia_gpus, count_visible_gpus

_EXPECTED = {
    "tensorflow": ((2, 21), (2, 22), "pip install 'tensorflow~=2.21.0'"),
    "keras": ((3, 15, 1), (3, 16), "pip install 'keras>=3.15.1,<3.16'"),
    "numpy": ((2,), (3,), "pip install 'numpy>=2,<3'"),
    "tensorboard": ((2, 21), (2, 22), "pip install 'tensorboard~=2.21.0'"),
}
"""Lowest version (inclusive), highest (exclusive), and the fix. Keras before 3.15.1 can run code
and follow paths contained in a model file that it loads."""

_MAY_BE_NEWER = {"keras": "3.15.x"}
"""Packages whose newer versions are likely to work, and the versions that were tested."""

_ENOUGH_DISK = 2 * 10**9
_ENOUGH_SHARED_MEMORY = 256 * 10**6
_PROBE_SECONDS = 120


def check_versions() -> Iterator[Finding]:
    """Checks the versions of Python and of the packages."""
    python = ".".join(map(str, sys.version_info[:3]))
    old = sys.version_info < (3, 11)
    fix = "recreate .venv with PYTHON=python3.11 launch/install.sh" if old else ""
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
            text = f"{found}; tested with {_MAY_BE_NEWER[name]} only"
            yield Finding(name, "warning", text, remedy)
        else:
            expected = f"at least {'.'.join(map(str, low))}, below {'.'.join(map(str, high))}"
            yield Finding(name, "error", f"{found}; expected {expected}", remedy)
    backend = os.environ.get("KERAS_BACKEND", "tensorflow")
    if backend != "tensorflow":
        yield Finding(
            "keras backend", "error", f"KERAS_BACKEND is {backend}", "unset KERAS_BACKEND"
        )


def check_hardware() -> Iterator[Finding]:
    """Checks the devices, and reports the precision and XLA setting that `auto` resolves to."""
    import tensorflow as tf

    from distcnn.runtime.precision import find_hardware, resolve_precision

    gpus = tf.config.list_physical_devices("GPU")
    seen = count_visible_gpus()
    if len(gpus) < seen:
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


def check_cluster(environment: Mapping[str, str], *, ports: bool = True) -> Iterator[Finding]:
    """Checks the cluster that the environment describes, and its hosts.

    Args:
        environment: Environment variables.
        ports: Whether to try this process's port too; it is in use while a training runs.
    """
    try:
        cluster = find_cluster(environment)
    except ClusterError as error:
        yield Finding("cluster", "error", str(error), "correct these environment variables")
        return
    text = "this process alone"
    if cluster.size > 1:
        text = f"rank {cluster.rank} of {cluster.size}, according to {cluster.scheme}"
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
    """Returns the port that this process will listen on, or 0 if any port will do."""
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
        fix = "stop the process that listens on it, or choose another --distribute.port"
        yield Finding("ports", "error", f"port {port} cannot be used: {error.strerror}", fix)
    else:
        yield Finding("ports", "ok", f"connects to itself at 127.0.0.1:{port}")


def check_storage() -> Iterator[Finding]:
    """Checks the disk space for runs and for the cache, and the shared memory."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for name, folder in (("disk for runs", Path.cwd()), ("disk for the cache", cache)):
        place = next(p for p in (folder, *folder.parents) if p.exists())
        free = shutil.disk_usage(place).free
        text = f"{free / 1e9:.1f} GB free in {place}"
        if not os.access(place, os.W_OK):
            fix = "work in another folder, or set XDG_CACHE_HOME"
            yield Finding(name, "error", f"{place} is not writable", fix)
        elif free < _ENOUGH_DISK:
            yield Finding(name, "warning", text, "free some disk space")
        else:
            yield Finding(name, "ok", text)
    shared = Path("/dev/shm")
    if shared.exists() and count_nvidia_gpus() > 1:
        free = shutil.disk_usage(shared).free
        low = free < _ENOUGH_SHARED_MEMORY
        yield Finding(
            "shared memory",
            "warning" if low else "ok",
            f"{free / 1e6:.0f} MB free in {shared}, which NCCL uses",
            "start the container with --shm-size=1g" if low else "",
        )


def check_reduction(strategy: str) -> Iterator[Finding]:
    """Starts two processes on this host that verify their reduction over loopback."""
    command = [sys.executable, "-m", "distcnn.probe", "--distribute.strategy", strategy]
    # Started through TF_CONFIG, which every strategy with several processes supports.
    processes = [
        subprocess.Popen(
            line,
            env={**environment, "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for line, environment in tf_config(2, command, unplaced_environment())
    ]
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
        fix = "check the firewall on loopback; if the build is broken, distcnn install-horovod"
        yield Finding(subject, "error", errors[0].removeprefix("error: "), fix)
    else:
        yield Finding(subject, "ok", "they reduce correctly")
