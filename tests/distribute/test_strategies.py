"""How a strategy and its devices follow from the flags, the started processes and the hardware."""

import os

import pytest

from distcnn.config import DistributeConfig
from distcnn.distribute.device_placement import bind_cores, gpus_of_process
from distcnn.distribute.strategies import choose_strategy, require_supported, strategy_of
from distcnn.errors import UsageError
from distcnn.runtime.cluster import Cluster

ALONE = Cluster()


def several(scheme, size=4, **more):
    return Cluster(scheme=scheme, size=size, local_size=size, **more)


@pytest.mark.parametrize(
    ("asked", "cluster", "gpus", "has_horovod", "chosen"),
    [
        ({}, ALONE, 0, True, "one_device"),
        ({}, ALONE, 1, True, "one_device"),
        ({}, ALONE, 4, True, "mirrored"),
        ({"devices": 2}, ALONE, 0, False, "mirrored"),
        ({"devices": 1}, ALONE, 4, False, "one_device"),
        ({}, several("horovod"), 4, True, "horovod"),
        ({}, several("tf_config"), 4, True, "multi_worker"),
        ({}, several("slurm"), 4, True, "horovod"),
        ({}, several("slurm"), 4, False, "multi_worker"),
        ({}, several("kubernetes"), 0, False, "multi_worker"),
        ({"strategy": "multi_worker"}, several("horovod"), 4, True, "multi_worker"),
        ({"strategy": "horovod"}, ALONE, 4, True, "horovod"),
    ],
)
def test_the_strategy_fits(asked, cluster, gpus, has_horovod, chosen):
    config = DistributeConfig(**asked)
    strategy, reason = choose_strategy(config, cluster, gpus=gpus, has_horovod=has_horovod)
    assert strategy == chosen
    assert (reason == "set in the configuration") == ("strategy" in asked)


@pytest.mark.parametrize(
    ("asked", "cluster", "message"),
    [
        ({"strategy": "mirrored"}, several("horovod"), "would train 4 separate models"),
        ({"strategy": "one_device"}, several("slurm"), "slurm started 4 processes"),
        ({"strategy": "one_device", "devices": 2}, ALONE, "use mirrored"),
        ({"strategy": "horovod", "devices": 2}, ALONE, "start more processes"),
        ({}, several("horovod"), "Horovod is not installed"),
    ],
)
def test_a_strategy_that_cannot_join_the_processes_is_refused(asked, cluster, message):
    with pytest.raises(UsageError, match=message):
        choose_strategy(DistributeConfig(**asked), cluster, gpus=0, has_horovod=False)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"devices": 0}, "distribute.devices is 0"),
        ({"port": 70_000}, "expected a value below 65000"),
        ({"compression": "fp16", "strategy": "mirrored"}, "only horovod does"),
    ],
)
def test_bad_values_are_refused(keys, message):
    with pytest.raises(UsageError, match=message):
        require_supported(DistributeConfig(**keys))


@pytest.mark.parametrize(
    ("local_rank", "local_size", "strategy", "gpus", "taken"),
    [
        (0, 1, "mirrored", 0, None),
        (0, 1, "mirrored", 4, None),
        (0, 1, "one_device", 4, [0]),
        (0, 1, "horovod", 4, [0]),
        (2, 4, "horovod", 4, [2]),
        (3, 4, "multi_worker", 1, [0]),  # Slurm shows each task only its own GPU
        (1, 2, "multi_worker", 4, [2, 3]),
    ],
)
def test_each_process_takes_its_own_gpus(local_rank, local_size, strategy, gpus, taken):
    cluster = Cluster(size=local_size, local_rank=local_rank, local_size=local_size)
    assert gpus_of_process(cluster, strategy_of(strategy).devices_per_process, gpus) == taken


@pytest.mark.parametrize("strategy", ["horovod", "multi_worker"])
def test_processes_do_not_share_gpus(strategy):
    cluster = Cluster(size=4, local_rank=1, local_size=4)
    with pytest.raises(UsageError, match="4 processes on this host, but only 2 GPUs; start"):
        gpus_of_process(cluster, strategy_of(strategy).devices_per_process, 2)


@pytest.mark.parametrize(
    ("local_rank", "local_size", "cores", "total", "threads", "bound"),
    [
        (0, 1, range(4), 4, None, None),
        (0, 2, range(4), 4, None, {0, 1}),
        (1, 2, range(4), 4, None, {2, 3}),
        (2, 3, range(4), 4, None, {2, 3}),
        (1, 2, (6, 7), 4, None, None),  # bound by the launcher already
        (3, 4, range(2), 2, 1, None),  # more processes than cores
    ],
)
def test_each_process_takes_its_part_of_the_cores(
    local_rank, local_size, cores, total, threads, bound, monkeypatch
):
    taken = []
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(cores))
    monkeypatch.setattr(os, "sched_setaffinity", lambda _, own: taken.append(set(own)))
    monkeypatch.setattr(os, "cpu_count", lambda: total)
    cluster = Cluster(size=local_size, local_rank=local_rank, local_size=local_size)
    assert bind_cores(cluster) == threads
    assert taken == ([] if bound is None else [bound])
