"""The range test's curve: its rates, its end, and what it suggests."""

import math

import pytest

from distcnn.tuning.rate_curve import RateCurve, curve_figure


def fed(loss_at, steps=100, tolerance=4.0):
    curve = RateCurve(1e-5, 10.0, steps, tolerance)
    for step in range(steps):
        if curve.add(loss_at(math.log10(curve.rate(step)))):
            break
    return curve


def basin(log_rate):
    """Falls fastest at 1e-2, is least at 10^-0.8, then explodes."""
    return 2.3 - 2 / (1 + math.exp(-4 * (log_rate + 2))) + math.exp(9 * (log_rate + 0.2))


def test_the_rates_rise_evenly_in_their_logarithm():
    curve = RateCurve(1e-4, 1.0, 5, 4.0)
    assert [curve.rate(step) for step in range(5)] == pytest.approx([1e-4, 1e-3, 1e-2, 0.1, 1])
    assert RateCurve(0.1, 1.0, 1, 4.0).rate(0) == 0.1


def test_the_test_ends_where_the_loss_diverges_and_suggests_two_rates():
    curve = fed(basin)
    assert curve.diverged
    assert len(curve.rates) == len(curve.losses) == len(curve.smoothed) < 100
    assert curve.smoothed[-1] > 4 * min(curve.smoothed[:-1]) >= curve.smoothed[-2]
    # The average of ten steps lags behind by about half a decade.
    assert 0.01 <= curve.steepest() <= 0.1
    assert 0.01 <= curve.tenth_of_least() <= 0.1
    figure = curve_figure(curve)
    assert figure.axes[0].get_xscale() == "log"
    assert len(figure.axes[0].lines) == 4


def test_the_average_is_corrected_for_its_start():
    assert fed(lambda _: 3.0, steps=7).smoothed == pytest.approx([3.0] * 7)


def test_a_loss_that_does_not_fall_suggests_nothing():
    for loss_at in (lambda _: 2.3, lambda log_rate: 2.3 + 0.1 * log_rate, lambda _: math.nan):
        curve = fed(loss_at)
        assert curve.steepest() is None
        assert curve.tenth_of_least() is None
    assert curve.diverged
    assert curve.losses == []


def test_a_loss_that_is_not_finite_ends_the_test_and_is_not_kept():
    curve = fed(lambda log_rate: math.inf if log_rate > -1 else 2 - 0.2 * log_rate)
    assert curve.diverged
    assert all(map(math.isfinite, curve.losses))
    assert curve.rates[-1] <= 0.1
