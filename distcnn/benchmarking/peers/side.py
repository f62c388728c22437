"""One side of the comparison: what its process offers, and the choice of its settings."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.progress import Budget, Say

_TRIED_STEPS = 4


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process of the comparison is told.

    Attributes:
        side: "distcnn", or the name of a peer.
        config: File of the configuration of the run.
        folder: Folder of the step and the batch, which the first process of distcnn writes.
        describe: Whether this process writes them.
        cores: Number of cores to compute on.
        budget: Time for trying settings.
    """

    side: str
    config: str
    folder: Path
    describe: bool
    cores: int
    budget: Budget

    @property
    def spec_file(self) -> Path:
        """File of the step."""
        return self.folder / "spec.json"

    def spec(self) -> PeerSpec:
        """Reads the step."""
        return PeerSpec.read(self.spec_file)

    def write_batch(self, images: np.ndarray, labels: np.ndarray) -> None:
        """Writes the batch: uint8 images in NHWC, or float32 in [0, 255], and one-hot labels."""
        np.savez(self.folder / "batch.npz", images=images, labels=labels)

    def batch(self) -> tuple[np.ndarray, np.ndarray]:
        """Reads the batch."""
        with np.load(self.folder / "batch.npz") as arrays:
            return arrays["images"], arrays["labels"]


class Side(Protocol):
    """A training step on a batch that stays in memory."""

    @property
    def title(self) -> str:
        """Name and version."""

    @property
    def precision(self) -> str:
        """Dtype policy, in Keras' words."""

    @property
    def parameters(self) -> int:
        """Number of parameters, moving statistics included."""

    @property
    def settings(self) -> list[str]:
        """The settings that matter for the speed, in words."""

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step."""

    def loss(self) -> float:
        """Returns the loss of the last step."""


def fastest(
    candidates: Mapping[str, Callable[[], float]], budget: Budget, say: Say
) -> tuple[str, str]:
    """Tries settings in turn.

    Args:
        candidates: By name, a function that trains one step and returns its seconds. The first is
            always tried, the others as long as there is time.
        budget: Time for trying.
        say: Takes lines of progress.

    Returns:
        The fastest, and all of them with their times in words.

    Raises:
        Exception: If the first one fails.
    """
    times: dict[str, float] = {}
    words: list[str] = []
    for name, step in candidates.items():
        if times and budget.left <= 0:
            words.append(f"{name} not tried: no time left")
            continue
        say(f"trying {name}")
        try:
            step()
            times[name] = min(step() for _ in range(_TRIED_STEPS))
        except Exception as error:  # a compiler may fail in any way; the first one must not
            if not times:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            words.append(f"{name} failed: {lines[0][:80]}")
        else:
            words.append(f"{name} {1000 * times[name]:.3g} ms")
    best = min(times, key=lambda name: times[name])
    return best, f"{best} (tried: {', '.join(words)})" if len(candidates) > 1 else best
