"""Starts the workers of one count, all on this machine, and waits for what they find."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from distcnn.errors import DistcnnError, UsageError

_GRACE_SECONDS = 5
_LAUNCHER_VARIABLES = ("HOROVOD_", "OMPI_", "PMI_", "PMIX_", "SLURM_")


def run_workers(
    strategy: str, workers: int, plan: dict[str, Any], folder: Path
) -> list[dict[str, Any]]:
    """Carries out a plan in a group of processes.

    Args:
        strategy: one_device, mirrored, horovod or multi_worker.
        workers: Replicas.
        plan: What each process does; see `distcnn.benchmarking.worker`.
        folder: Where plan, results and the processes' output are kept.

    Returns:
        What rank 0 found, one entry of the plan after the other.

    Raises:
        DistcnnError: If a process fails; the message ends with what it printed last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "plan.json").write_text(json.dumps(plan))
    results = folder / "results.json"
    command = [
        *(sys.executable, "-m", "distcnn.benchmarking.worker"),
        *(str(folder / "plan.json"), str(results)),
    ]
    log = folder / "output.txt"
    with log.open("wb") as output:
        started = [
            subprocess.Popen(
                line,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            for line, environment in _commands(strategy, workers, command)
        ]
        codes = _wait(started)
    if any(codes) or not results.exists():
        printed = log.read_text(errors="replace").strip().splitlines() or ["nothing was printed"]
        last = next((line for line in reversed(printed) if "error: " in line), printed[-1])
        raise DistcnnError(f"{workers} workers by {strategy} failed: {last} (all of it: {log})")
    found: list[dict[str, Any]] = json.loads(results.read_text())
    return found


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> list[int]:
    """Waits for all; when one fails, or this process is to end, ends the others."""
    try:
        while any(process.poll() is None for process in processes):
            if any(process.returncode for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            _end(process)
    return [process.wait() for process in processes]


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends a process and all that it started, which are in a group of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)


def _commands(
    strategy: str, workers: int, command: list[str]
) -> list[tuple[list[str], dict[str, str]]]:
    """Returns the command and the environment of each process to start."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHER_VARIABLES)}
    clean.pop("TF_CONFIG", None)
    path = [str(Path.cwd()), *filter(None, [clean.get("PYTHONPATH")])]
    clean["PYTHONPATH"] = os.pathsep.join(path)
    if strategy in ("one_device", "mirrored") or workers == 1:
        return [(command, clean)]
    if strategy == "horovod":
        launcher = Path(sys.executable).parent / "horovodrun"
        if not launcher.exists():
            raise UsageError(
                f"there is no {launcher}; run distcnn install-horovod, or take "
                "--distribute.strategy multi_worker or mirrored"
            )
        return [([str(launcher), "--gloo", "-np", str(workers), *command], clean)]
    addresses = [f"127.0.0.1:{port}" for port in free_ports(workers)]
    commands = []
    for rank in range(workers):
        task = {"type": "worker", "index": rank}
        cluster = json.dumps({"cluster": {"worker": addresses}, "task": task})
        commands.append((command, clean | {"TF_CONFIG": cluster}))
    return commands


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


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Lends a folder for plans and outputs; it stays if a group fails, to be looked at."""
    folder = Path(tempfile.mkdtemp(prefix="distcnn-benchmark-"))
    try:
        yield folder
    except DistcnnError as error:
        if isinstance(error, UsageError):  # which is about the command line
            shutil.rmtree(folder)
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
