"""Exchanges between the ends of shared memory, which here are threads of one process."""

import itertools
import os
import secrets
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf

from distcnn.distribute import shared_memory
from distcnn.distribute.shared_memory import Channel, Neighbours

SIZE = 3
ONES = np.ones(3, np.float32)


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(SIZE) as pool:
        yield pool


@pytest.fixture
def ranks(threads: ThreadPoolExecutor) -> Iterator[list[Neighbours]]:
    token, barrier = secrets.token_hex(8), threading.Barrier(SIZE)
    begun = [
        threads.submit(Neighbours, rank, SIZE, token, lambda: (barrier.wait(), None)[1])
        for rank in range(SIZE)
    ]
    found = [future.result(timeout=30) for future in begun]
    yield found
    for neighbours in found:
        neighbours.close()


def channels_of(ranks: Sequence[Neighbours], arrays: Sequence[Any] = (ONES,)) -> list[Channel]:
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
    return [Channel(neighbours, specs) for neighbours in ranks]


def exchanging(
    threads: ThreadPoolExecutor, channels: Sequence[Channel], own: Sequence[Sequence[Any]]
) -> list[Future]:
    return [threads.submit(c.exchange, *a) for c, a in zip(channels, own, strict=True)]


def test_every_process_reads_what_every_one_wrote(ranks, threads):
    random = np.random.default_rng(5)

    def arrays() -> list[Any]:
        return [
            random.normal(size=(7, 3)).astype(np.float32),
            np.array(random.normal(), np.float32),
            random.normal(size=513).astype(tf.bfloat16.as_numpy_dtype),
            random.integers(0, 9, (2, 2)),
        ]

    channels, before = channels_of(ranks, arrays()), None
    for _ in range(5):  # both halves of the memory, and again
        own = [arrays() for _ in ranks]
        written = [array for part in own for array in part]
        for future in exchanging(threads, channels, own):
            found = future.result(timeout=30)
            for array, expected in zip(found, written, strict=True):
                assert array.dtype == expected.dtype
                np.testing.assert_array_equal(array, expected)
        if before is not None:  # what was read last is still whole while this is written
            for array, expected in zip(*before, strict=True):
                np.testing.assert_array_equal(array, expected)
        before = found, written


def test_ranks_that_reduce_different_tensors_are_told(ranks, threads):
    channels = channels_of(ranks[:2]) + channels_of(ranks[2:], [np.ones(99, np.float32)])
    own = [[ONES], [ONES], [np.ones(99, np.float32)]]
    for future in exchanging(threads, channels, own):
        with pytest.raises(RuntimeError, match=r"reduces other tensors \(\d+ bytes\) than rank"):
            future.result(timeout=30)


def test_a_process_that_is_gone_is_named(ranks, threads):
    waiting = exchanging(threads, channels_of(ranks[:2]), [[ONES]] * 2)
    ranks[2].close()
    for future in waiting:
        with pytest.raises(ConnectionError, match="the connection to rank 2 was lost"):
            future.result(timeout=30)


def test_a_process_may_be_late_but_not_stopped(ranks, threads, monkeypatch):
    channels = channels_of(ranks)
    early = exchanging(threads, channels[:2], [[ONES]] * 2)
    threading.Event().wait(2.5)  # longer than between two looks at the others
    assert not any(future.done() for future in early)
    for future in [*early, *exchanging(threads, channels[2:], [[ONES]])]:
        np.testing.assert_array_equal(future.result(timeout=30), [ONES] * SIZE)

    monkeypatch.setattr(shared_memory, "_PATIENCE_SECONDS", 2)
    monkeypatch.setattr(shared_memory, "_stands_still", lambda process: process == os.getpid())
    (waiting,) = exchanging(threads, channels[:1], [[ONES]])
    with pytest.raises(ConnectionError, match="the connection to rank 1 was lost"):
        waiting.result(timeout=30)


def test_a_stopped_process_is_seen_to_stand_still():
    with psutil.Popen(["sleep", "60"]) as child:
        assert not shared_memory._stands_still(child.pid)
        child.suspend()
        while child.status() != psutil.STATUS_STOPPED:
            pass
        assert shared_memory._stands_still(child.pid)
        child.kill()
    assert not shared_memory._stands_still(child.pid)


def test_reductions_are_carried_out_in_the_order_of_tracing(ranks):
    """Else a rank could wait in one for a rank that waits in another."""

    @tf.function
    def reduce(x: tf.Tensor) -> tf.Tensor:
        independent = [ranks[0].gather([x + number]) for number in range(4)]
        return tf.add_n([part[0] for parts in independent for part in parts])

    graph = reduce.get_concrete_function(tf.TensorSpec([2], tf.float32)).graph
    calls = [op for op in graph.get_operations() if op.type == "PyFunc"]
    assert len(calls) == 4
    for earlier, later in itertools.pairwise(calls):
        assert earlier in later.control_inputs


def test_what_is_mapped_stays_open_and_nothing_else(ranks, threads):
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    channels = channels_of(ranks)
    for _ in range(3):
        for future in exchanging(threads, channels, [[ONES]] * SIZE):
            future.result(timeout=30)
    assert count() == before + SIZE * SIZE
    del channels, future
    assert count() == before
