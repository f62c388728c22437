"""The metrics of a run: what a row holds, and which part of them belongs to a state."""

import hashlib
import os
from pathlib import Path
from typing import Any

from distcnn.runtime.files import open_regular

METRICS_FILE = "metrics.jsonl"
"""The file in a run directory; it only grows while a run trains."""

MEASUREMENTS = (
    *("step", "epoch", "learning_rate"),
    *("images_per_second", "step_ms", "input_wait"),
)
"""What a row of `metrics.jsonl` holds besides metrics."""


def metrics_mark(path: Path, size: int | None = None) -> dict[str, Any] | None:
    """Describes the metrics that belong to a state: their number of bytes and their checksum.

    Args:
        path: The file of metrics.
        size: How many of its bytes belong to the state; None for all of them.

    Returns:
        The description, which JSON can represent; None if there is no file.
    """
    if not path.is_file():
        return None
    with open_regular(path) as file:
        os.fsync(file.fileno())  # a power failure must not leave less than the checkpoint expects
        content = file.read(-1 if size is None else size)
    return {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def metrics_until(mark: dict[str, Any] | None, content: bytes) -> bytes:
    """Returns the part of a file of metrics that belongs to a state.

    Args:
        mark: The description of that part; None if it is unknown, for which all is returned.
        content: The content of the file.

    Raises:
        ValueError: The file does not begin as it did then.
    """
    if mark is None:
        return content
    beginning = content[: mark["bytes"]]
    if hashlib.sha256(beginning).hexdigest() != mark["sha256"]:
        raise ValueError("it is not as the checkpoint expects")
    return beginning
