"""How cores are divided among workers, and what the fractions of a step lead to."""

import dataclasses
import os
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from distcnn.benchmarking.bottleneck import describe_bottleneck
from distcnn.benchmarking.machine import CoreAllocation, Machine
from distcnn.benchmarking.scaling_benchmark import ScalingBenchmark
from distcnn.benchmarking.step_timing import (
    _communication_noise,
    _quartiles,
    _share_at_once,
    time_fractions,
)
from distcnn.benchmarking.worker import pin
from distcnn.config import Config, DataConfig, DistributeConfig, TrainConfig
from distcnn.distribute.tensorflow import OneDevice
from distcnn.errors import UsageError


@pytest.mark.parametrize(
    ("cores", "counts", "rule", "expected"),
    [
        (2, [1, 2, 4], "fixed", {1: 1, 2: 1, 4: 1}),
        (16, [1, 2, 4], "fixed", {1: 4, 2: 4, 4: 4}),
        (16, [1, 2, 4], "divided", {1: 16, 2: 8, 4: 4}),
        (8, [1, 2], "3", {1: 3, 2: 3}),
        (2, [4], "fixed", {4: 1}),
    ],
)
def test_cores_per_worker(cores, counts, rule, expected):
    allocation = CoreAllocation(Machine(cores, 0), rule, tuple(counts))
    assert {count: allocation.per_worker(count) for count in counts} == expected


def test_counts_beyond_the_hardware_are_oversubscribed():
    on_cores = CoreAllocation(Machine(2, 0), "fixed", (1, 2, 4))
    assert [on_cores.oversubscribed(count) for count in (1, 2, 4)] == [False, False, True]
    on_gpus = CoreAllocation(Machine(8, 2), "fixed", (1, 2, 4))
    assert on_gpus.per_worker(2) is None
    assert [on_gpus.oversubscribed(count) for count in (2, 4)] == [False, True]
    assert CoreAllocation(Machine(8, 0), "3", (2, 4)).oversubscribed(4)


@pytest.mark.parametrize("rule", ["some", "0", "-1"])
def test_wrong_rules_are_refused(rule):
    with pytest.raises(UsageError, match=f"cores_per_worker is '{rule}'; expected fixed"):
        CoreAllocation(Machine(2, 0), rule, (1,))


def test_several_workers_need_a_distributed_strategy():
    with pytest.raises(UsageError, match="one_device; expected horovod"):
        ScalingBenchmark(
            Config(distribute=DistributeConfig(strategy="one_device")),
            Machine(2, 0),
            [1, 2],
            steps=5,
            warmup=1,
            cores_per_worker="fixed",
        )


def test_each_process_is_pinned_to_its_own_cores():
    before = os.sched_getaffinity(0)
    try:
        cores = sorted(before)
        for rank in range(len(cores) + 1):
            os.sched_setaffinity(0, before)
            pin(1, rank)
            assert os.sched_getaffinity(0) == {cores[rank % len(cores)]}
        os.sched_setaffinity(0, before)
        pin(None, 0)
        assert os.sched_getaffinity(0) == before
    finally:
        os.sched_setaffinity(0, before)


def test_the_time_fractions_add_up():
    measured = {"full": 100.0, "resident": 90.0, "unreduced": 70.0, "average": 65.0}
    expected = {"input_share": 0.1, "communication_share": 0.2, "compute_share": 0.7}
    assert time_fractions(measured, 0.02) == pytest.approx({**expected, "imbalance_share": 0.05})
    assert time_fractions({"full": 100.0, "resident": 101.0}, 0.0)["compute_share"] == 1.0
    # The pipeline catches up while other variants run; only the wait without pauses reveals it.
    assert time_fractions({"full": 100.0, "resident": 100.0}, 0.4)["input_share"] == 0.4
    noisy = time_fractions({"full": 50.0, "resident": 90.0, "unreduced": 10.0}, 0.0)
    expected = {"input_share": 0.0, "compute_share": 0.0, "communication_share": 1.0}
    assert noisy == {**expected, "imbalance_share": 0.0}


class OneOfTwo(OneDevice):
    def gather(self, values):
        return np.array([values, [3.0, 1.0, 3.0, 1.0]])


def test_the_step_without_reduction_is_measured_twice():
    measured = {"full": 100.0, "resident": 90.0, "unreduced": 71.0, "unreduced_again": 69.0}
    fractions = time_fractions(measured | {"average": 66.0}, 0.0)
    assert fractions["communication_share"] == pytest.approx(0.2)
    assert fractions["imbalance_share"] == pytest.approx(0.05)
    assert _share_at_once(measured | {"at_once": 140.0}) == pytest.approx(0.5)
    assert _communication_noise(measured) == pytest.approx(0.02)
    assert _communication_noise({"full": 100.0, "resident": 90.0}) is None


def test_a_step_takes_as_long_as_the_slowest_worker():
    """Of four steps, each of two workers is the slower one in two."""
    timed: Any = SimpleNamespace(seconds=[1.0, 3.0, 1.0, 3.0])
    quartiles = _quartiles(OneOfTwo(), {"full": timed, "unreduced": timed})
    assert quartiles == {"full": 3000.0, "unreduced": 3000.0, "average": 2000.0}


def shares(waiting=0.0, communication=0.0, imbalance=0.0):
    return {
        "input_share": waiting,
        "communication_share": communication,
        "compute_share": 1 - waiting - communication,
        "imbalance_share": imbalance,
    }


COMPUTE_BOUND = shares()
INPUT_BOUND = shares(waiting=0.4, communication=0.1, imbalance=0.3)
COMMUNICATION_BOUND = shares(communication=0.3, imbalance=0.1)
UNBALANCED = shares(imbalance=0.1)


@pytest.mark.parametrize(
    ("config", "fractions", "settings", "words"),
    [
        (Config(), COMPUTE_BOUND, {}, "already well tuned"),
        (Config(), UNBALANCED, {}, "unbalanced (10%)"),
        (Config(), COMPUTE_BOUND, {"precision": "float32"}, "--precision.policy mixed_bfloat16"),
        (Config(), COMPUTE_BOUND, {"fast_path": False}, "--train.fast_path on"),
        (Config(), COMPUTE_BOUND, {"step_ms": 2.0}, "--train.steps_per_execution 10"),
        (Config(), COMPUTE_BOUND, {"oversubscribed": True}, "start fewer"),
        (Config(), INPUT_BOUND, {}, "input-bound (40%): augment less"),
        (Config(data=DataConfig(cache="none")), INPUT_BOUND, {}, "--data.cache memory"),
        (Config(), COMMUNICATION_BOUND, {}, "communication-bound (30%): reduce less often"),
        (
            Config(distribute=DistributeConfig(sync_batchnorm=True)),
            COMMUNICATION_BOUND,
            {},
            "--distribute.sync_batchnorm false",
        ),
        (
            Config(train=TrainConfig(accumulation_steps=4)),
            COMMUNICATION_BOUND,
            {"precision": "float32"},
            "--distribute.compression",
        ),
        (
            Config(train=TrainConfig(accumulation_steps=4)),
            COMMUNICATION_BOUND,
            {},
            "a larger --train.batch_size",
        ),
        (
            Config(data=DataConfig(check="reading", cache="none")),
            INPUT_BOUND,
            {},
            "images are decoded in every epoch",
        ),
        (
            Config(train=TrainConfig(accumulation_steps=4)),
            COMMUNICATION_BOUND,
            {"transport": "shared memory"},  # which compression would disable
            "a larger --train.batch_size",
        ),
    ],
)
def test_the_verdict_names_the_flag_to_change(config, fractions, settings, words):
    usual = {
        "step_ms": 50.0,
        "precision": "mixed_bfloat16",
        "oversubscribed": False,
        "fast_path": True,
        "transport": "Horovod",
        "fastest_policy": "mixed_bfloat16",
    }
    assert words in describe_bottleneck(config, fractions, **(usual | settings))


def test_the_global_batch_by_number_of_workers():
    benchmark = ScalingBenchmark(
        Config(), Machine(4, 0), [1, 2], steps=5, warmup=1, cores_per_worker="fixed"
    )
    sizes = [
        benchmark._config_for(workers, mode).train.global_batch_size
        for mode in ("weak", "strong")
        for workers in (1, 2)
    ]
    assert sizes == [64, 128, 64, 64]
    tiny = ScalingBenchmark(
        dataclasses.replace(Config(), train=TrainConfig(batch_size=1)),
        Machine(4, 0),
        [2],
        steps=5,
        warmup=1,
        cores_per_worker="fixed",
    )
    with pytest.raises(UsageError, match="cannot be divided among 2 workers"):
        tiny._config_for(2, "strong")
