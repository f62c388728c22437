"""Statistics of times that stalls disturb."""

import numpy as np
import pytest

from distcnn.benchmarking.statistics import noise_floor, ratio_of_quartiles, summarise


def stalling(count: int, seconds: float, seed: int) -> list[float]:
    """Times on a machine that stalls: a little noise, and some ten times as long."""
    random = np.random.default_rng(seed)
    times = seconds * random.normal(1, 0.01, count)
    times[random.random(count) < 0.15] *= 10
    return list(times)


def test_quartiles_and_the_interval_of_the_median():
    times = summarise([number / 1000 for number in range(1, 102)])
    assert (times.p25, times.p50, times.p95) == pytest.approx((26, 51, 96))
    assert times.p50_low < 51 < times.p50_high
    # The interval contains the true median in about 95 of 100 repeats.
    random = np.random.default_rng(1)
    hits = 0
    for _ in range(400):
        times = summarise(list(random.exponential(1.0, 40)))
        hits += times.p50_low <= 1000 * np.log(2) <= times.p50_high
    assert 0.92 <= hits / 400 <= 0.99


def test_the_ratio_resists_stalls_and_has_an_interval():
    ratio, low, high = ratio_of_quartiles(stalling(60, 0.1, 1), stalling(60, 0.05, 2))
    assert ratio == pytest.approx(2, rel=0.02)
    assert low <= ratio <= high
    assert high - low < 0.1


def test_the_noise_floor_grows_with_the_noise():
    calm, wild = (
        noise_floor(stalling(80, 0.1, 3)),
        noise_floor(list(np.random.default_rng(4).uniform(0.1, 0.3, 80))),
    )
    assert calm < 0.03 < wild
