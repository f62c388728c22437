"""A launched run that tests disturb: what is running of it, and what it has done."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Self

import psutil

from distcnn.launching.record import Restart, read
from distcnn.storage.memory_copies import SHARED_MEMORY
from distcnn.storage.run_directory import read_run_id
from tests.conftest import PYTHONPATH
from tests.launching.processes import ranks_among
from tests.runs import flags, small_config

OVERRIDES = {
    "data__synthetic_examples": 800,  # 45 steps an epoch
    "model__factory": "tests.tiny:plain",
    "train__global_batch_size": 16,
    "train__epochs": 10,
    "logging__every_steps": 10,
    "train__callbacks": ["tests.tiny:Unhurried"],
}


class LaunchedRun:
    """A run that `distcnn.launch` supervises.

    Args:
        out: Its directory.
        own: Flags of the launcher.
        command: The command to launch; by default, a small training run.
        environment: Further environment variables.
        prefix: What runs before the launcher.
        log: File for what the launcher prints. Default: one beside the directory.
        **overrides: Other values of the training run.
    """

    def __init__(
        self,
        out: Path,
        own: Sequence[str],
        command: Sequence[str] = (),
        environment: dict[str, str] | None = None,
        prefix: Sequence[str] = (),
        log: Path | None = None,
        **overrides: object,
    ) -> None:
        self.out = out
        out.parent.mkdir(parents=True, exist_ok=True)
        self.log = log or out.parent / f"{out.name}-launcher.txt"
        words = command or ["train", *flags(small_config(out, **OVERRIDES | overrides))]
        with self.log.open("ab") as file:
            self.process = subprocess.Popen(
                [*prefix, sys.executable, "-m", "distcnn.launch", *own, *words],
                env={**os.environ, "PYTHONPATH": PYTHONPATH, "UNHURRIED": "0.01"}
                | (environment or {}),
                cwd=out.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Stops the run if it goes on."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def said(self) -> str:
        """Returns what the launcher has printed."""
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """Returns everything that runs below the launcher."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def ranks(self) -> dict[int, psutil.Process]:
        """Returns the processes of the ranks, by rank."""
        return ranks_among(self.processes())

    def restarts(self) -> list[Restart]:
        """Returns the recorded restarts."""
        return read(self.out / "launch")

    def wait_until(self, condition: Callable[[], bool], seconds: float = 240) -> None:
        """Waits until something has happened, while the launcher runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, self.said()
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.05)

    def wait_for_step(self, step: int) -> None:
        """Waits until a row of metrics of a step, or a later one, is written."""
        self.wait_until(lambda: self.step() >= step)

    def step(self) -> int:
        """Returns the step of the last row of metrics."""
        try:
            text = (self.out / "metrics.jsonl").read_text()
        except OSError:
            return 0
        steps = [line.split('"step": ')[1].split(",")[0] for line in text.splitlines() if line]
        return int(steps[-1]) if steps else 0

    def has_new_copy(self) -> bool:
        """Returns whether a copy in memory is of a later step than every checkpoint."""
        own = SHARED_MEMORY / f"distcnn-{os.getuid()}" / (read_run_id(self.out) or "none")
        copies, saved = (
            [path.stem for path in folder.glob("step-*.npz")]
            for folder in (own, self.out / "checkpoints")
        )
        return max(copies, default="") > max(saved, default="")

    def wait(self, seconds: float = 400) -> int:
        """Waits for the launcher's end; returns its exit code."""
        return self.process.wait(seconds)


def still_running(processes: Sequence[psutil.Process], seconds: float) -> list[psutil.Process]:
    """Returns the processes that have not ended after some time."""
    _, alive = psutil.wait_procs(processes, timeout=seconds)
    return [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
