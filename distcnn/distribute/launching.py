"""Starting the processes of a run on this host: their command lines and environments."""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distcnn.errors import UsageError

Process = tuple[list[str], dict[str, str]]
"""A command line and its environment."""

Launcher = Callable[[int, Sequence[str], Mapping[str, str]], list[Process]]
"""From the number of replicas, a command line and an environment to the processes to start."""

_PLACED_BY = ("HOROVOD_", "OMPI_", "PMI", "SLURM_", "JOB_COMPLETION", "DISTCNN_HOSTS", "TF_CONFIG")


def unplaced_environment() -> dict[str, str]:
    """Returns this process's environment without what a launcher said of its place in a cluster."""
    return {k: v for k, v in os.environ.items() if not k.startswith(_PLACED_BY)}


def one_process(
    replicas: int, command: Sequence[str], environment: Mapping[str, str]
) -> list[Process]:
    """Starts a single process, which holds all replicas."""
    return [(list(command), dict(environment))]


def horovodrun(
    replicas: int, command: Sequence[str], environment: Mapping[str, str]
) -> list[Process]:
    """Starts Horovod's launcher, which starts a process a replica.

    Raises:
        UsageError: If the launcher is not installed.
    """
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.exists():
        raise UsageError(
            f"there is no {launcher}; run distcnn install-horovod, or choose "
            "--distribute.strategy multi_worker or mirrored"
        )
    line = [str(launcher), "--gloo", "-np", str(replicas), *command]
    return [(line, dict(environment))]


def tf_config(
    replicas: int, command: Sequence[str], environment: Mapping[str, str]
) -> list[Process]:
    """Starts a process a replica, each told its place by `TF_CONFIG`, over loopback."""
    addresses = [f"127.0.0.1:{port}" for port in free_ports(replicas)]
    processes = []
    for rank in range(replicas):
        task = {"type": "worker", "index": rank}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        processes.append((list(command), {**environment, "TF_CONFIG": cluster}))
    return processes


def free_ports(count: int) -> list[int]:
    """Returns ports that are free on the loopback interface now."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
