"""Starts a group of workers on this machine and collects their measurements."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distcnn.benchmarking.link import Link
from distcnn.benchmarking.progress import Follower, Heartbeat, Say
from distcnn.distribute.launching import Process, unplaced_environment
from distcnn.distribute.strategies import strategy_of
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.files import parse_json
from distcnn.runtime.rank_process import die_with_parent

OUT_OF_MEMORY = "out of memory: "
"""How the message of a worker that exceeds its limit of memory begins."""

_GRACE_SECONDS = 5


class WorkersFailedError(DistcnnError):
    """A process of a group has failed.

    Args:
        message: Quotes its last error or line.
        log: The output of the group.
        exit_codes: Those of the processes that were started; negative for a signal.
    """

    def __init__(self, message: str, log: Path, exit_codes: Sequence[int]) -> None:
        super().__init__(message)
        self.log = log
        self.exit_codes = tuple(exit_codes)


def run_workers(
    strategy: str,
    workers: int,
    plan: dict[str, Any],
    folder: Path,
    say: Say | None = None,
    link: Link | None = None,
) -> list[dict[str, Any]]:
    """Runs a plan in a group of processes.

    Args:
        strategy: "one_device", "mirrored", "horovod" or "multi_worker".
        workers: Number of replicas.
        plan: The measurements to take; see `distcnn.benchmarking.worker`.
        folder: Folder for the plan, the results and the output of the processes.
        link: The hosts of the processes, if there are several, or None for this one.
        say: Takes the lines of progress of rank 0, or None.

    Returns:
        The measurements of rank 0, one for each entry of the plan.

    Raises:
        WorkersFailedError: If a process fails; the message quotes its last error or line.
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
        processes = [
            subprocess.Popen(
                line,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                preexec_fn=die_with_parent(),
            )
            for line, environment in _processes(strategy, workers, command, link)
        ]
        follower = Follower(log, Heartbeat(say)) if say else None
        exit_codes = _wait(processes, follower.read if follower else lambda: None)
    if any(exit_codes) or not results.exists():
        who = f"{strategy} with {workers} worker{'s' if workers > 1 else ''}"
        raise WorkersFailedError(str(quote_failure(who, log)), log, exit_codes)
    measurements: list[dict[str, Any]] = parse_json(results.read_text())
    return measurements


def quote_failure(who: str, log: Path) -> DistcnnError:
    """Returns the error for a process that failed; it quotes the last error or line of its output.

    Args:
        who: Names the process.
        log: Its output.
    """
    printed = log.read_text(errors="replace").strip().splitlines() or ["no output"]
    reason = next((line for line in reversed(printed) if "error: " in line), printed[-1])
    return DistcnnError(f"{who} failed: {reason} (full output: {log})")


def _wait(processes: Sequence[subprocess.Popen[bytes]], meanwhile: Callable[[], None]) -> list[int]:
    """Waits for all processes; ends the rest if one fails or this process is interrupted."""
    try:
        while any(process.poll() is None for process in processes):
            meanwhile()
            if any(process.returncode for process in processes):
                break
            time.sleep(0.1)
    finally:
        for process in processes:
            terminate(process)
    return [process.wait() for process in processes]


def terminate(process: subprocess.Popen[Any]) -> None:
    """Ends a process and its children, which form a process group."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE_SECONDS)


def _processes(strategy: str, workers: int, command: list[str], link: Link | None) -> list[Process]:
    """Returns the command line and the environment of each process to start."""
    environment = environment_of_children()
    if link is not None and workers > 1:
        return link.place(workers, command, environment)
    return strategy_of(strategy).launch(workers, command, environment)


def environment_of_children() -> dict[str, str]:
    """Returns the environment of a process to start, which finds modules in the current folder."""
    environment = unplaced_environment()
    path = [str(Path.cwd()), *filter(None, [environment.get("PYTHONPATH")])]
    environment["PYTHONPATH"] = os.pathsep.join(path)
    return environment


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Provides a temporary folder, which is kept for inspection if a group of workers fails."""
    folder = Path(tempfile.mkdtemp(prefix="distcnn-benchmark-"))
    try:
        yield folder
    except DistcnnError as error:
        if isinstance(error, UsageError):  # no group failed: the command line is wrong
            shutil.rmtree(folder)
        raise
    except BaseException:
        shutil.rmtree(folder)
        raise
    shutil.rmtree(folder)
