"""The scaling model: its fit and its predictions."""

import pytest

from distcnn.benchmarking.scaling_model import ScalingModel, fit_scaling_model


def test_the_fit_recovers_the_parameters_of_the_data():
    truth = ScalingModel(5.0, 0.8, 0.05, 1e6, 9_000_000)
    steps = {batch: truth.compute_ms(batch) for batch in (16, 32, 64, 128)}
    sizes = (4096, 2**18, 2**20, 2**24)
    reductions = {n: ScalingModel(0, 0, 0.05, 1e6, n).reduce_ms(4) for n in sizes}
    fitted = fit_scaling_model(steps, reductions, 4, [9_000_000], 0.0)
    assert fitted.fixed_ms == pytest.approx(5)
    assert fitted.per_image_ms == pytest.approx(0.8)
    assert fitted.latency_ms == pytest.approx(0.05)
    assert fitted.bytes_per_ms == pytest.approx(1e6)
    assert fitted.step_ms(64, 32) == pytest.approx(truth.step_ms(64, 32))


def test_times_and_efficiencies_follow_the_formulas():
    model = ScalingModel(10, 1, 0.1, 1e6, 10_000_000)
    assert model.efficiency(1, 64) == 1
    # 14 hops of 0.1 ms, and 14 / 8 of 10 MB at 1 GB/s.
    assert model.reduce_ms(8) == pytest.approx(1.4 + 17.5)
    assert model.efficiency(8, 64) == pytest.approx(74 / (74 + 18.9))
    assert model.efficiency(512, 64) < model.efficiency(64, 64) < model.efficiency(64, 256)


def test_what_is_reduced_while_the_model_computes_costs_nothing():
    model = ScalingModel(10, 1, 0.1, 1e6, 10_000_000, overlap=0.25, last_bytes=1_000_000)
    assert model.reduce_ms(8) == pytest.approx(1.4 + 17.5)
    # A quarter of 74 ms hides 18.5 of them, but not the last bucket: 1.4 + 14 / 8 ms.
    assert model.exposed_ms(8, 64) == pytest.approx(1.4 + 1.75)
    assert model.exposed_ms(8, 16) == pytest.approx(18.9 - 26 / 4)
    assert model.step_ms(8, 16) == pytest.approx(26 + 18.9 - 26 / 4)
    fitted = fit_scaling_model({1: 1.0, 2: 2.0}, {1: 0.1, 2: 0.2}, 2, [5, 3, 2], 0.4)
    assert (fitted.bytes_per_step, fitted.last_bytes, fitted.overlap) == (10, 2, 0.4)


def test_no_time_is_negative():
    fitted = fit_scaling_model({16: 1.0, 32: 3.0, 64: 7.0}, {4096: 0.1, 2**20: 0.1}, 2, [1], 0.0)
    assert fitted.fixed_ms == 0
    assert fitted.bytes_per_ms > 0
    assert fitted.compute_ms(64) > 0
