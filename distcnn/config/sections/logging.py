"""The section `logging`."""

import re
from dataclasses import dataclass
from typing import Literal

from distcnn.config.sections.bounds import require, require_at_least


@dataclass(frozen=True, kw_only=True)
class LoggingConfig:
    """Metrics, TensorBoard and progress display."""

    every_steps: int = 50
    """Steps between rows of metrics.jsonl and between points in TensorBoard."""
    tensorboard: bool = True
    """Write event files for TensorBoard."""
    images: bool = True
    """Write images for TensorBoard: a training batch, filters, feature maps and mistakes."""
    profile: str | None = None
    """Steps to profile for TensorBoard, as FIRST,LAST. Default: no profile."""
    progress: Literal["auto", "live", "lines", "none"] = "auto"
    """Progress display: a live bar, plain lines, or none. auto: live on a terminal, else lines."""

    def __post_init__(self) -> None:
        """Validates the interval and the range of profiled steps."""
        require_at_least("logging", self, 1, "every_steps")
        if self.profile is not None:
            match = re.fullmatch(r"(\d+),(\d+)", self.profile)
            require(
                match is not None and 0 < int(match[1]) <= int(match[2]),
                f"logging.profile is {self.profile!r}; expected FIRST,LAST with 1 <= FIRST <= LAST",
            )
