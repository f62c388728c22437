"""One side of the comparison: what its process offers, and the choice of its settings."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.progress import Budget, Say, rounds

_TRIED_STEPS = 8

_COMPILE_SECONDS = 30.0
_COMPILE_STEPS = 30
"""Compiling takes about as long, and longer for a large model: as long as so many steps."""


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


class Trained(Protocol):
    """A training step on a batch that stays in memory."""

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step."""

    def loss(self) -> float:
        """Returns the loss of the last step, or the mean loss of the last turn."""


class Side(Trained, Protocol):
    """A training step that describes itself.

    Attributes:
        title: Name and version.
        precision: Dtype policy, in Keras' words.
        settings: The settings that matter for the speed, in words.
    """

    title: str
    precision: str
    settings: list[str]

    @property
    def parameters(self) -> int:
        """Number of parameters, moving statistics included."""


def fastest(
    candidates: Mapping[str, Callable[[], float]], budget: Budget, say: Say
) -> tuple[str, str]:
    """Tries settings in turn.

    Args:
        candidates: By name, a function that trains one step and returns its seconds. The first is
            always tried, the others if there is time to compile them.
        budget: Time for trying.
        say: Takes lines of progress.

    Returns:
        The fastest, and all of them with their times in words.

    Raises:
        Exception: If the first one fails.
    """
    words: dict[str, str] = {}
    needed = -math.inf
    for name, step in candidates.items():
        if budget.left < needed:
            words[name] = "not tried: no time left"
            continue
        say(f"trying {name}")
        try:
            step()
            needed = max(needed, _COMPILE_SECONDS, _COMPILE_STEPS * step())
        except Exception as error:  # a compiler may fail in any way; the first one must not
            if not words:
                raise
            lines = str(error).strip().splitlines() or [type(error).__name__]
            words[name] = f"failed: {lines[0][:80]}"
        else:
            words[name] = ""
    times = {name: float("inf") for name, text in words.items() if not text}
    for _ in rounds("trying", _TRIED_STEPS if len(times) > 1 else 1, budget, say):
        for name in times:
            times[name] = min(times[name], candidates[name]())
    best = min(times, key=lambda name: times[name])
    if len(candidates) == 1:
        return best, best
    words |= {name: f"{1000 * seconds:.3g} ms" for name, seconds in times.items()}
    return best, f"{best} (tried: {', '.join(f'{name} {text}' for name, text in words.items())})"
