"""Robust statistics of times that stalls disturb: order statistics and their uncertainty."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_RESAMPLES = 2000


@dataclass(frozen=True)
class Times:
    """Order statistics of repeated times, in milliseconds.

    Attributes:
        p25: Lower quartile, which stalls of the machine hardly affect; ratios are based on it.
        p50: Median.
        p50_low: Lower end of the 95 % confidence interval of the median.
        p50_high: Upper end of the 95 % confidence interval of the median.
        p95: 95th percentile.
    """

    p25: float
    p50: float
    p50_low: float
    p50_high: float
    p95: float


def summarise(seconds: Sequence[float]) -> Times:
    """Returns the order statistics of times in seconds.

    The confidence interval of the median is made of order statistics (Conover 1999, section 3.2),
    so it assumes nothing about the distribution.
    """
    times = np.sort(np.asarray(seconds, float)) * 1e3
    count = len(times)
    half = 0.98 * np.sqrt(count)  # 1.96 standard deviations of Binomial(count, 1/2)
    low = max(0, int(np.floor(count / 2 - half)))
    high = min(count - 1, int(np.ceil(count / 2 + half)))
    p25, p50, p95 = np.percentile(times, [25, 50, 95])
    return Times(float(p25), float(p50), float(times[low]), float(times[high]), float(p95))


def ratio_of_quartiles(
    numerator: Sequence[float], denominator: Sequence[float]
) -> tuple[float, float, float]:
    """Returns the ratio of two lower quartiles with its 95 % bootstrap interval.

    Args:
        numerator: Times of one side.
        denominator: Times of the other side, taken in turn with the first, so that they form pairs.

    Returns:
        The ratio, and the lower and upper end of its interval.
    """
    pairs = np.array([numerator, denominator], float)
    random = np.random.default_rng(0)
    drawn = random.integers(0, pairs.shape[1], (_RESAMPLES, pairs.shape[1]))
    first, second = np.percentile(pairs[:, drawn], 25, axis=2)
    low, high = np.percentile(first / second, [2.5, 97.5])
    ratio = np.percentile(pairs[0], 25) / np.percentile(pairs[1], 25)
    return float(ratio), float(low), float(high)


def noise_floor(seconds: Sequence[float]) -> float:
    """Returns how far from 1 the ratio of something to itself may be (an A/A test).

    The times at even and odd positions are compared as if they were two sides. The result is the
    distance from 1 of the farther end of the interval; 1.0 if there are fewer than four times,
    which tell nothing.
    """
    count = len(seconds) // 2 * 2
    if count < 4:
        return 1.0
    _, low, high = ratio_of_quartiles(seconds[0:count:2], seconds[1:count:2])
    return max(high - 1, 1 - low)
