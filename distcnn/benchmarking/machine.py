"""What this machine has, and what of it each worker is given."""

import os
import shutil
import subprocess
from dataclasses import dataclass

from distcnn.errors import UsageError


@dataclass(frozen=True)
class Machine:
    """What workers can be given here.

    Attributes:
        cores: CPU cores that this process may use.
        gpus: GPUs.
    """

    cores: int
    gpus: int

    @classmethod
    def find(cls) -> "Machine":
        """Looks, without starting TensorFlow, which would take all GPUs."""
        gpus = 0
        if shutil.which("nvidia-smi") and os.environ.get("CUDA_VISIBLE_DEVICES") != "":
            listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True)
            gpus = sum(line.startswith("GPU ") for line in listed.stdout.splitlines())
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            if visible and gpus:
                gpus = sum(name.strip() != "-1" for name in visible.split(","))
        return cls(len(os.sched_getaffinity(0)), gpus)


@dataclass(frozen=True)
class CoreAllocation:
    """How the machine is divided among workers.

    Attributes:
        machine: The machine.
        rule: fixed, divided, or a number; see the help of the command.
        counts: Numbers of workers that are measured.

    Raises:
        UsageError: If there is no such rule.
    """

    machine: Machine
    rule: str
    counts: tuple[int, ...]

    def __post_init__(self) -> None:
        if self.rule not in ("fixed", "divided") and not (self.rule.isdigit() and int(self.rule)):
            raise UsageError(
                f"cores_per_worker is {self.rule!r}; expected fixed, divided or a number"
            )

    def per_worker(self, workers: int) -> int | None:
        """Returns the cores of each worker, or None on GPUs."""
        if self.machine.gpus:
            return None
        cores = self.machine.cores
        if self.rule.isdigit():
            return min(int(self.rule), cores)
        fitting = [count for count in self.counts if count <= cores] or [cores]
        divisor = max(fitting) if self.rule == "fixed" else workers
        return max(1, cores // divisor)

    def total(self, workers: int) -> int:
        """Returns the cores or GPUs of all workers, one that is shared counted for each."""
        return workers * (self.per_worker(workers) or 1)

    def oversubscribed(self, workers: int) -> bool:
        """Tells whether workers share a core, or a GPU."""
        return self.total(workers) > (self.machine.gpus or self.machine.cores)
