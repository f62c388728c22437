"""The command lines and environments that start the processes of a run on this host."""

import json
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from distcnn.errors import UsageError
from distcnn.runtime.launchers import without_launchers

Process = tuple[list[str], dict[str, str]]
"""A command line and its environment."""

Launch = Callable[[int, Sequence[str], Mapping[str, str]], list[Process]]
"""Maps a number of replicas, a command line and an environment to the processes to start."""


def unplaced_environment() -> dict[str, str]:
    """Returns this process's environment without the variables that place it in a cluster."""
    return without_launchers(os.environ)


def one_process(
    replicas: int, command: Sequence[str], environment: Mapping[str, str]
) -> list[Process]:
    """Returns a single process, which holds all replicas."""
    return [(list(command), dict(environment))]


def horovodrun(
    replicas: int, command: Sequence[str], environment: Mapping[str, str]
) -> list[Process]:
    """Returns the process of Horovod's launcher, which starts one process per replica.

    It runs as `distcnn.horovodrun`, whose store admits the processes of the run only.

    Raises:
        UsageError: If the launcher is not installed.
    """
    launcher = Path(sys.executable).parent / "horovodrun"
    if not launcher.exists():
        raise UsageError(
            f"{launcher} does not exist; run distcnn install-horovod, or use "
            "--distribute.strategy multi_worker or mirrored"
        )
    line = [sys.executable, "-m", "distcnn.horovodrun", "--gloo", "-np", str(replicas), *command]
    return [(line, dict(environment))]


def tf_config(
    replicas: int,
    command: Sequence[str],
    environment: Mapping[str, str],
    addresses: Sequence[str] = (),
) -> list[Process]:
    """Returns one process per replica; `TF_CONFIG` gives each its rank.

    Args:
        replicas: Number of replicas.
        command: The command line.
        environment: The environment.
        addresses: Host and port of each process; by default, free ports of the loopback interface.
    """
    addresses = addresses or [f"127.0.0.1:{port}" for port in free_ports(replicas)]
    processes = []
    for rank in range(replicas):
        task = {"type": "worker", "index": rank}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        processes.append((list(command), {**environment, "TF_CONFIG": cluster}))
    return processes


def free_ports(count: int) -> list[int]:
    """Returns ports that are currently free on the loopback interface."""
    sockets = [socket.socket() for _ in range(count)]
    try:
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
    finally:
        for listener in sockets:
            listener.close()
