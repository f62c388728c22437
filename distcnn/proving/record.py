"""What one training of the proof leaves: its variables and metrics, in a file."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

WEIGHT, AVERAGE, OPTIMIZER, METRIC = "weight ", "average ", "optimizer ", "metric "
"""How the names of the arrays begin."""

_STEPS, _NORMALISES = "steps", "normalises"


@dataclass(frozen=True)
class Record:
    """What a few steps have trained.

    Attributes:
        arrays: float64 arrays by name, as in `weight conv/kernel`, those of the weights first.
        steps: Number of steps.
        normalises: Whether batch normalisation used each worker's own rows.
    """

    arrays: dict[str, np.ndarray]
    steps: int
    normalises: bool

    def save(self, path: Path) -> None:
        """Writes the file."""
        numbers = {_STEPS: np.array(self.steps), _NORMALISES: np.array(self.normalises)}
        with path.open("wb") as file:
            np.savez(file, **numbers, **self.arrays)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Record":
        """Reads the file."""
        with np.load(path) as file:
            arrays = dict(file)
        return cls(arrays, int(arrays.pop(_STEPS)), bool(arrays.pop(_NORMALISES)))
