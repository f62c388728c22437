"""The section `checkpoint`."""

from dataclasses import dataclass

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
    keep: int = 2
    """Number of recent checkpoints to keep, besides the best one."""

    def __post_init__(self) -> None:
        """Validates the counts."""
        require_at_least("checkpoint", self, 1, "every_epochs", "keep")
        require_at_least("checkpoint", self, 0, "every_steps", "every_minutes")
