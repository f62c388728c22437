"""What the checks share: a check and its result, the machine, and runs in processes of their own.

Imports nothing but Python's own modules, so that the kit can say without an installation that there
is no GPU.
"""

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[2]

_GRACE_SECONDS = 30
"""How long a run may take to save when the kit is stopped."""


class FailedError(Exception):
    """The claim does not hold; the message says what was found."""


class SkippedError(Exception):
    """The claim cannot be checked here; the message says why."""


@dataclass(frozen=True)
class Machine:
    """The GPUs of this machine, as its driver lists them.

    Attributes:
        names: Name of each GPU.
        driver: Version of the driver.
        memory_mb: Memory of the first GPU.
        capability: CUDA compute capability of the first GPU.
        instances: UUIDs of the instances of divided GPUs (MIG).
    """

    names: tuple[str, ...] = ()
    driver: str = ""
    memory_mb: int = 0
    capability: tuple[int, int] = (0, 0)
    instances: tuple[str, ...] = ()

    @classmethod
    def detect(cls) -> "Machine":
        """Asks `nvidia-smi`."""
        keys = "name,driver_version,memory.total,compute_cap"
        rows = _ask(f"--query-gpu={keys}", "--format=csv,noheader,nounits")
        if not rows:
            return cls()
        cells = [[cell.strip() for cell in row.split(",")] for row in rows]
        major, minor = cells[0][3].split(".")
        listed = [line for line in _ask("-L") if line.strip().startswith("MIG ")]
        return cls(
            tuple(row[0] for row in cells),
            cells[0][1],
            int(float(cells[0][2])),
            (int(major), int(minor)),
            tuple(line.rpartition("UUID: ")[2].rstrip(")") for line in listed),
        )


def _ask(*arguments: str) -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip().splitlines() if done.returncode == 0 else []


@dataclass(frozen=True)
class Check:
    """A claim about GPUs.

    Attributes:
        name: Its name on the command line.
        claim: What is claimed.
        page: Where.
        run: Checks it; returns a figure, raises `FailedError` or `SkippedError`.
        gpus: How many GPUs it needs.
    """

    name: str
    claim: str
    page: str
    run: Callable[["Bench"], str]
    gpus: int = 1


@dataclass
class Bench:
    """Runs commands of distcnn for a check.

    Attributes:
        machine: The GPUs.
        folder: An empty folder for this check.
        device: gpu, or cpu to try the checks themselves without one.
        gpus: Number of GPUs, or of pretended ones.
        data: Folder with CIFAR-10, or None.
        quick: Whether to take the fewest steps, whose times say nothing.
    """

    machine: Machine
    folder: Path
    device: str = "gpu"
    gpus: int = 1
    data: str | None = None
    quick: bool = False
    environment: dict[str, str] = field(default_factory=dict)
    _processes: "list[subprocess.Popen[bytes]]" = field(default_factory=list, init=False)

    @property
    def on_gpu(self) -> bool:
        """Whether the checks run on GPUs."""
        return self.device == "gpu"

    @property
    def policies(self) -> tuple[str, ...]:
        """The policies to compare; convolutions in float16 are far too slow on a CPU."""
        every = ("float32", "mixed_bfloat16", "mixed_float16")
        return every if self.on_gpu else every[:2]

    def variables(self, visible: str | None = None) -> dict[str, str]:
        """Returns the environment of a process that may see some GPUs; by default the first one."""
        visible = ("0" if visible is None else visible) if self.on_gpu else ""
        path = os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH")]))
        own = {"PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": visible}
        return {**os.environ, **self.environment, **own}

    @property
    def all_visible(self) -> str:
        """The numbers of all GPUs."""
        return ",".join(map(str, range(self.gpus)))

    def command(self, module: str, *arguments: str, workers: int = 1) -> list[str]:
        """Returns the command line of a module, on several workers through Horovod."""
        line = [sys.executable, "-m", module, *arguments]
        if workers == 1:
            return line
        launcher = [sys.executable, "-m", "distcnn.horovodrun", "--gloo", "-np", str(workers)]
        return [*launcher, *line]

    def run(
        self, module: str, *arguments: str, workers: int = 1, visible: str | None = None
    ) -> str:
        """Runs a module, and returns what it printed.

        Raises:
            FailedError: If its exit code is not 0; quotes its last error or line.
        """
        if workers > 1 and visible is None:
            visible = self.all_visible
        line = self.command(module, *arguments, workers=workers)
        process = self._begin(line, visible, subprocess.PIPE, subprocess.PIPE)
        said = "".join(part.decode(errors="replace") for part in process.communicate())
        if process.returncode != 0:
            lines = said.strip().splitlines() or ["no output"]
            errors = [line for line in lines if "error: " in line]
            raise FailedError(f"{module} ended with {process.returncode}: {(errors or lines)[-1]}")
        return said

    def _begin(
        self, line: list[str], visible: str | None, stdout: Any, stderr: Any
    ) -> "subprocess.Popen[bytes]":
        """Starts a process, which does not outlive this one."""
        from distcnn.runtime.rank_process import die_with_parent

        process = subprocess.Popen(
            line,
            env=self.variables(visible),
            cwd=self.folder,
            stdout=stdout,
            stderr=stderr,
            preexec_fn=die_with_parent(),
        )
        self._processes.append(process)
        return process

    def close(self) -> None:
        """Ends what still runs."""
        for process in self._processes:
            for end in (process.terminate, process.kill):
                if process.poll() is None:
                    end()
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        process.wait(_GRACE_SECONDS)

    def flags(self, *arguments: str) -> list[str]:
        """Returns the flags of a small run without a download."""
        small = ["--recipe=quickstart", "--train.epochs=2", "--logging.tensorboard=false"]
        return [*small, "--logging.images=false", "--logging.progress=none", *arguments]

    def train(
        self, name: str, *arguments: str, workers: int = 1, **keywords: Any
    ) -> dict[str, Any]:
        """Trains a small run, and returns its summary and its resolved settings."""
        flags = self.flags(*arguments, f"--out={name}")
        self.run("distcnn.train", *flags, workers=workers, **keywords)
        return self.finished(name)

    def start(self, name: str, *arguments: str, visible: str = "0") -> "subprocess.Popen[bytes]":
        """Starts a small run, whose output goes into a file."""
        line = self.command("distcnn.train", *self.flags(*arguments, f"--out={name}"))
        with (self.folder / f"{name}.log").open("wb") as log:
            return self._begin(line, visible, log, log)

    def finished(self, name: str) -> dict[str, Any]:
        """Returns the summary and the resolved settings of a run."""
        summary: dict[str, Any] = json.loads((self.folder / name / "summary.json").read_text())
        environment = json.loads((self.folder / name / "environment.json").read_text())
        return {**environment["resolved"], **summary}

    def speed(self, *arguments: str, workers: int = 1) -> dict[str, Any]:
        """Benchmarks the article's network on synthetic images; returns a row of the results."""
        steps = ("--steps=5", "--warmup=1") if self.quick else ("--steps=40", "--warmup=5")
        batch = "--train.batch_size=16" if self.quick else "--train.batch_size=512"
        name = f"speed-{time.monotonic_ns()}"
        self.run(
            "distcnn.benchmark",
            *("--data.name=synthetic", batch, *steps, "--scaling=weak", f"--workers={workers}"),
            *(f"--out={name}", *arguments),
            visible=self.all_visible,
        )
        found: dict[str, Any] = json.loads((self.folder / name / "results.json").read_text())
        row: dict[str, Any] = found["rows"][-1]
        return row


def require(condition: object, found: str) -> None:
    """Fails a check.

    Raises:
        FailedError: If a condition does not hold.
    """
    if not condition:
        raise FailedError(found)


def sentence(printed: str, beginning: str) -> str:
    """Returns the line of an output that says something, without what stands before it.

    Raises:
        FailedError: If there is none.
    """
    lines = [line for line in printed.splitlines() if beginning in line]
    require(lines, f"the output does not say that {beginning}")
    return lines[-1][lines[-1].index(beginning) :]
