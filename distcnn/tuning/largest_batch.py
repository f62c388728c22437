"""The search for the largest batch that fits into memory: doubles, then bisects."""

from collections.abc import Callable
from dataclasses import dataclass

_ROUNDED = 8
"""Larger batches are multiples of this, as hardware prefers."""

_ENOUGH_SPEED = 0.95
"""Fraction of the highest speed from which a larger batch no longer pays."""


@dataclass(frozen=True)
class Fit:
    """What training at a batch size that fits took.

    Attributes:
        images_per_second: Images per second of all workers.
        peak_memory_mb: Peak memory of the worker that takes most, in MB.
        most: The largest batch per worker for which there are enough images.
    """

    images_per_second: float
    peak_memory_mb: float
    most: int


def find_largest(
    measure: Callable[[int], Fit | None], low: int, high: int | None, bisections: int
) -> dict[int, Fit | None]:
    """Tries batch sizes until the largest that fits is known.

    Args:
        measure: Trains at a batch size per worker; returns None if memory does not suffice.
        low: The first size.
        high: The largest size to try, or None for no bound but the number of images.
        bisections: How often to halve the distance between the largest size that fits and the
            smallest that does not.

    Returns:
        What each size took, in the order of trying.
    """
    tried: dict[int, Fit | None] = {}
    good, bad, size = 0, 0, low
    while not bad:
        fit = tried[size] = measure(size)
        if fit is None:
            bad = size
            break
        good = size
        most = fit.most if high is None else min(high, fit.most)
        if size >= most:
            return tried
        size = min(2 * size, most)
    for _ in range(bisections):
        size = _between(good, bad)
        if size in (good, bad):
            break
        fit = tried[size] = measure(size)
        good, bad = (good, size) if fit is None else (size, bad)
    return tried


def _between(good: int, bad: int) -> int:
    middle = (good + bad) // 2
    rounded = middle // _ROUNDED * _ROUNDED
    return rounded if rounded > good else middle


def largest(tried: dict[int, Fit | None]) -> int | None:
    """Returns the largest size that fits, or None."""
    return max((size for size, fit in tried.items() if fit is not None), default=None)


def fast_enough(tried: dict[int, Fit | None]) -> int | None:
    """Returns the smallest size at nearly the highest speed, or None if none fits."""
    speeds = {size: fit.images_per_second for size, fit in tried.items() if fit is not None}
    best = max(speeds.values(), default=0.0)
    return min((s for s, speed in speeds.items() if speed >= _ENOUGH_SPEED * best), default=None)
