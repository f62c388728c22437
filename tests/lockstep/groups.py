"""Groups of real processes: started by Horovod's launcher, or as a TF_CONFIG cluster."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from distcnn.distribute.launching import free_ports
from tests.conftest import PYTHONPATH

BIN = Path(sys.executable).parent
HOROVODRUN = [sys.executable, "-m", "distcnn.horovodrun"]


@dataclass
class Group:
    """Processes that train together.

    Attributes:
        kind: horovod, multi_worker or mirrored.
        size: Number of ranks.
        processes: The started processes: Horovod's launcher alone, or every rank.
        logs: The output of each of them.
    """

    kind: str
    size: int
    processes: list[subprocess.Popen[bytes]]
    logs: list[Path]

    def wait(self, timeout: float = 400) -> list[int]:
        """Waits until all processes end; returns their exit codes."""
        deadline = time.monotonic() + timeout
        try:
            return [p.wait(max(1.0, deadline - time.monotonic())) for p in self.processes]
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the group hangs: {self.output()}") from None

    def kill(self) -> None:
        """Kills all processes."""
        for process in [*self.ranks(), *self.processes]:
            process.send_signal(signal.SIGKILL)

    def output(self) -> str:
        """Returns the output so far, rank after rank."""
        return "\n".join(log.read_text(errors="replace") for log in self.logs)

    def ranks(self) -> list[psutil.Process]:
        """Returns the running Python processes of the ranks, by rank."""
        found: dict[int, psutil.Process] = {}
        for started in self.processes:
            if started.poll() is not None:
                continue
            parent = psutil.Process(started.pid)
            for process in [parent, *parent.children(recursive=True)]:
                try:
                    environment = process.environ()
                    name = process.name()
                except psutil.Error:
                    continue
                if "RANK_OF_TEST" in environment and name.startswith("python"):
                    found[int(environment["RANK_OF_TEST"])] = process
                elif "HOROVOD_RANK" in environment and name.startswith("python"):
                    found[int(environment["HOROVOD_RANK"])] = process
        return [found[rank] for rank in sorted(found)]


def start_group(
    kind: str, size: int, arguments: Sequence[str], folder: Path, **environment: str
) -> Group:
    """Starts `python ARGUMENT...` as each rank of a group.

    Args:
        kind: horovod, multi_worker, or mirrored (a single process).
        size: Number of ranks.
        arguments: Arguments of the Python interpreter.
        folder: The working directory, where the output is kept too.
        **environment: Additional environment variables.
    """
    folder.mkdir(parents=True, exist_ok=True)
    base = {**os.environ, "PYTHONPATH": PYTHONPATH, "PATH": f"{BIN}:{os.environ['PATH']}"}
    base |= environment
    commands: list[tuple[list[str], dict[str, str]]] = []
    command = [sys.executable, *arguments]
    if kind == "horovod":
        commands.append(([*HOROVODRUN, "--gloo", "-np", str(size), *command], base))
    elif kind == "multi_worker":
        workers = [f"127.0.0.1:{port}" for port in free_ports(size)]
        for rank in range(size):
            task = {"type": "worker", "index": rank}
            config = json.dumps({"cluster": {"worker": workers}, "task": task})
            commands.append((command, {**base, "TF_CONFIG": config, "RANK_OF_TEST": str(rank)}))
    else:
        commands.append((command, base))
    logs = [folder / f"output-{number}.txt" for number in range(len(commands))]
    processes = []
    for (line, variables), log in zip(commands, logs, strict=True):
        with log.open("wb") as file:
            processes.append(
                subprocess.Popen(
                    line,
                    env=variables,
                    cwd=folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                )
            )
    return Group(kind, size, processes, logs)


@dataclass(frozen=True)
class Outcome:
    """The outcome of one case in a group.

    Attributes:
        results: The report of each rank.
        folder: Where the run and the weights are.
    """

    results: list[dict[str, Any]]
    folder: Path

    @property
    def summary(self) -> dict[str, Any]:
        """Rank 0's summary."""
        assert "summary" in self.results[0], self.results
        summary: dict[str, Any] = self.results[0]["summary"]
        return summary

    @property
    def weights(self) -> list[np.ndarray]:
        """Rank 0's weights."""
        assert "summary" in self.results[0], self.results
        with np.load(self.folder / "weights.npz") as archive:
            return [archive[name] for name in archive.files]


@dataclass(frozen=True)
class StartedPlan:
    """A plan that a group of processes works on."""

    group: Group
    plan: list[dict[str, Any]]
    folder: Path

    def outcomes(self) -> dict[str, Outcome]:
        """Waits until the group ends; returns the outcome of every entry by name."""
        codes = self.group.wait()
        assert not any(codes), self.group.output()
        ranks = 1 if self.group.kind in ("mirrored", "alone") else self.group.size
        outcomes = {}
        for entry in self.plan:
            files = sorted((self.folder / entry["name"]).glob("rank-*.json"))
            results = [json.loads(path.read_text()) for path in files]
            assert len(results) == ranks
            outcomes[entry["name"]] = Outcome(results, self.folder / entry["name"])
        return outcomes


def start_plan(kind: str, size: int, plan: list[dict[str, Any]], folder: Path) -> StartedPlan:
    """Lets a group of processes train every entry of a plan; see `tests.lockstep.worker`."""
    folder.mkdir(parents=True)
    file = folder / "plan.json"
    file.write_text(json.dumps(plan))
    arguments = ["-m", "tests.lockstep.worker", str(file), str(folder)]
    return StartedPlan(start_group(kind, size, arguments, folder), plan, folder)


def run_plan(kind: str, size: int, plan: list[dict[str, Any]], folder: Path) -> dict[str, Outcome]:
    """Trains every entry of a plan in one group of processes."""
    return start_plan(kind, size, plan, folder).outcomes()
