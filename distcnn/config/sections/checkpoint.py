"""The section `checkpoint`."""

from dataclasses import dataclass
from typing import Literal

from distcnn.config.sections.bounds import require_at_least


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """Checkpoints and resuming."""

    resume: str = "auto"
    """auto: resume from the newest checkpoint in the run directory. never: start a new run. PATH, a
    run directory or a checkpoint: start a new run from its state."""
    every_epochs: int = 1
    """Epochs between checkpoints."""
    every_steps: int = 0
    """Steps between checkpoints inside an epoch, besides those at its end; 0: none."""
    every_minutes: float = 0.0
    """Minutes of training between checkpoints inside an epoch, about; 0: none."""
    memory_every_steps: int = 0
    """Steps between copies of the state in the memory of every host (`/dev/shm`), from which a run
    goes on that has lost processes; 0: none. A copy takes the memory of three checkpoints."""
    signal: Literal["SIGUSR1", "SIGUSR2"] = "SIGUSR1"
    """The signal that asks the run to save and stop, besides SIGTERM and Ctrl-C."""
    notice: str | None = None
    """A shell command that ends with exit code 0 when this host is about to be taken away, such as
    one that asks a cloud's metadata. Each host runs it every five seconds; the run then saves and
    stops, as on a signal."""
    mirror: str | None = None
    """Address to which every checkpoint is copied, such as s3://bucket/runs/a, and from which a
    host without the run directory takes the run. It needs `out`."""
    keep: int = 2
    """Number of recent checkpoints to keep, besides the best one."""

    @property
    def other_run(self) -> str | None:
        """The run or checkpoint whose state a new run starts from, or None."""
        return None if self.resume in ("auto", "never") else self.resume

    def __post_init__(self) -> None:
        """Validates the counts."""
        require_at_least("checkpoint", self, 1, "every_epochs", "keep")
        require_at_least(
            "checkpoint", self, 0, "every_steps", "every_minutes", "memory_every_steps"
        )
