"""The cores and GPUs of this machine, and how they are divided among workers."""

import os
from dataclasses import dataclass

from distcnn.errors import UsageError
from distcnn.runtime.nvidia import count_visible_gpus


@dataclass(frozen=True)
class Machine:
    """The hardware that workers can use.

    Attributes:
        cores: Number of CPU cores that this process may use.
        gpus: Number of GPUs.
    """

    cores: int
    gpus: int

    @classmethod
    def detect(cls) -> "Machine":
        """Detects the hardware without starting TensorFlow, which would claim every GPU."""
        return cls(len(os.sched_getaffinity(0)), count_visible_gpus())


@dataclass(frozen=True)
class CoreAllocation:
    """How the machine is divided among workers.

    Attributes:
        machine: The machine.
        rule: "fixed", "divided" or a number; see the help of `--cores_per_worker`.
        counts: The numbers of workers to measure.

    Raises:
        UsageError: If the rule is unknown.
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
        """Returns the number of cores per worker, or None on GPUs."""
        if self.machine.gpus:
            return None
        cores = self.machine.cores
        if self.rule.isdigit():
            return min(int(self.rule), cores)
        fitting_counts = [count for count in self.counts if count <= cores] or [cores]
        divisor = max(fitting_counts) if self.rule == "fixed" else workers
        return max(1, cores // divisor)

    def total(self, workers: int) -> int:
        """Returns the cores or GPUs of all workers; a shared one counts once for each worker."""
        return workers * (self.per_worker(workers) or 1)

    def oversubscribed(self, workers: int) -> bool:
        """Returns whether workers have to share a core or a GPU."""
        return self.total(workers) > (self.machine.gpus or self.machine.cores)
