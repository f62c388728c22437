"""The section `logging`."""

import re
from dataclasses import dataclass
from typing import Literal

from distcnn.config.sections.bounds import require, require_at_least

TRACKERS = ("csv", "tensorboard", "mlflow", "wandb")
"""The trackers that a run can be recorded in besides its directory."""


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Metrics, TensorBoard and progress display."""

    every_steps: int = 50
    """Steps between rows of metrics.jsonl and between points in TensorBoard."""
    tensorboard: bool = True
    """Write event files for TensorBoard."""
    trackers: str = ""
    """Where else to record the run, one or more with commas. csv: metrics.csv in the run directory.
    tensorboard: settings and results on TensorBoard's page HParams. mlflow: the store of
    MLFLOW_TRACKING_URI, or a local one. wandb: Weights & Biases, offline unless WANDB_MODE says
    otherwise."""
    experiment: str = "distcnn"
    """MLflow's experiment, and the project of Weights & Biases."""
    images: bool = True
    """Write images for TensorBoard: a training batch, filters, feature maps and mistakes."""
    profile: str | None = None
    """Steps to profile for TensorBoard, as FIRST,LAST. Default: no profile."""
    progress: Literal["auto", "live", "lines", "none"] = "auto"
    """Progress display: a live bar, plain lines, or none. auto: live on a terminal, else lines."""

    def __post_init__(self) -> None:
        """Validates the interval and the range of profiled steps."""
        require_at_least("logging", self, 1, "every_steps")
        for name in self.tracker_names:
            require(
                name in TRACKERS,
                f"logging.trackers is {self.trackers!r}; expected one or more of "
                f"{','.join(TRACKERS)}",
            )
        if self.profile is not None:
            match = re.fullmatch(r"(\d+),(\d+)", self.profile)
            require(
                match is not None and 0 < int(match[1]) <= int(match[2]),
                f"logging.profile is {self.profile!r}; expected FIRST,LAST with 1 <= FIRST <= LAST",
            )

    @property
    def tracker_names(self) -> tuple[str, ...]:
        """The trackers by name, each once."""
        names = (name.strip() for name in self.trackers.split(","))
        return tuple(dict.fromkeys(name for name in names if name))
