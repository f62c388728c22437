"""Compares what one and several workers have trained, and says why it differs."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from distcnn.proving.record import AVERAGE, METRIC, WEIGHT, Record
from distcnn.runtime.finding import Finding

TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
"""Largest difference, relative to the largest value, that rounding explains."""

_SCALE = 1e-6
"""Values that are all smaller than this are compared as if the largest were this."""

_SCALE_OF_WEIGHTS = 0.1
"""The same for weights. Adam divides a gradient by its size: where the gradient is zero but for
rounding, as for a bias before batch normalisation, a weight moves by far more than rounding."""

_NOT_ALIKE = (
    "a loss, metric or layer mixes the rows of a batch or sums over them, random numbers are drawn "
    "outside Keras or by a layer other than dropout, or a layer casts to float32; see "
    "docs/scripts.md"
)


@dataclass(frozen=True)
class Comparison:
    """The variables and metrics of one and of several workers.

    Attributes:
        one: What one worker has trained.
        several: What several have.
        float_type: The type in which they have computed.
    """

    one: Record
    several: Record
    float_type: str

    @cached_property
    def differences(self) -> dict[str, float]:
        """The differences by name, relative to the largest value; infinite if one is not finite."""
        pairs = {**self.one.arrays, **self.several.arrays}
        return {n: _difference(n, self.one.arrays, self.several.arrays) for n in pairs}

    @property
    def differing(self) -> list[str]:
        """What differs by more than rounding explains, in the order of the model."""
        tolerance = TOLERANCES[self.float_type]
        return [name for name, difference in self.differences.items() if difference > tolerance]


def verdict(own: Comparison, synchronised: Comparison | None, workers: int) -> Iterator[Finding]:
    """Yields what differs, and why.

    Args:
        own: The comparison as configured.
        synchronised: The same with batch normalisation over the rows of all workers, if tried.
        workers: Number of workers.
    """
    steps = own.several.steps
    summary = f"{steps} steps in {own.float_type} on 1 and on {workers} workers"
    wrong = own.differing
    if not wrong:
        text = f"{summary}: largest difference {max(own.differences.values()):.1e}"
        yield Finding("lockstep", "ok", text)
        return
    for name in _telling(wrong):
        yield Finding(name, "warning", _described(own.differences[name]))
    summary = f"{summary}: {len(wrong)} of {len(own.differences)} differ, first {wrong[0]}"
    if synchronised is not None and not synchronised.differing:
        text = f"{summary}, since batch normalisation uses each worker's own rows"
        fix = "--distribute.sync_batchnorm true makes them equal"
        yield Finding("lockstep", "warning", text, fix)
        return
    if synchronised is not None:
        still = synchronised.differing
        summary = f"{summary}; with synchronised batch normalisation {len(still)}, first {still[0]}"
    yield Finding("lockstep", "error", summary, _NOT_ALIKE)


def _telling(names: Sequence[str]) -> Sequence[str]:
    """Returns the weights and metrics if weights differ, from which the rest follows; else all."""
    if not any(name.startswith(WEIGHT) for name in names):
        return names
    return [name for name in names if name.startswith((WEIGHT, METRIC))]


def _described(difference: float) -> str:
    if math.isinf(difference):
        return "is not finite, or exists on 1 worker or on several only"
    return f"differs by {difference:.1e} of its largest value"


def _difference(
    name: str, one: Mapping[str, np.ndarray], several: Mapping[str, np.ndarray]
) -> float:
    if name not in one or name not in several or one[name].shape != several[name].shape:
        return math.inf
    values, others = one[name], several[name]
    if not (np.isfinite(values).all() and np.isfinite(others).all()):
        return math.inf
    least = _SCALE_OF_WEIGHTS if name.startswith((WEIGHT, AVERAGE)) else _SCALE
    scale = max(least, float(np.abs(values).max(initial=0.0)))
    return float(np.abs(values - others).max(initial=0.0)) / scale
