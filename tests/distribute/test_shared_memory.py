"""Exchanges through shared memory, here between threads of one process."""

import gc
import itertools
import os
import secrets
import socket
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import tensorflow as tf

from distcnn.distribute import shared_memory
from distcnn.distribute.packing import SMALL_ELEMENTS, pack
from distcnn.distribute.shared_memory import SharedMemoryGroup, TensorExchange

SIZE = 3
ONES = np.ones(3, np.float32)
"""Small enough to be sent through the sockets themselves."""

MANY = np.ones(5000, np.float32)
"""Large enough to need shared memory."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(SIZE) as pool:
        yield pool


@pytest.fixture
def ranks(threads: ThreadPoolExecutor) -> Iterator[list[SharedMemoryGroup]]:
    run_id, barrier = secrets.token_hex(8), threading.Barrier(SIZE)
    futures = [
        threads.submit(
            SharedMemoryGroup, rank, SIZE, run_id, lambda: (barrier.wait(), None)[1], 30.0
        )
        for rank in range(SIZE)
    ]
    groups = [future.result(timeout=30) for future in futures]
    yield groups
    for group in groups:
        group.close()


def exchanges_of(
    ranks: Sequence[SharedMemoryGroup], arrays: Sequence[Any] = (ONES,)
) -> list[TensorExchange]:
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
    return [TensorExchange(group, specs) for group in ranks]


def start(
    threads: ThreadPoolExecutor, exchanges: Sequence[TensorExchange], own: Sequence[Sequence[Any]]
) -> list[Future]:
    return [threads.submit(e.run, *a) for e, a in zip(exchanges, own, strict=True)]


@pytest.mark.parametrize("count", [513, 9000])
def test_every_process_reads_what_every_one_wrote(count, ranks, threads):
    random = np.random.default_rng(5)

    def arrays() -> list[Any]:
        return [
            random.normal(size=(7, 3)).astype(np.float32),
            np.array(random.normal(), np.float32),
            random.normal(size=count).astype(tf.bfloat16.as_numpy_dtype),
            random.integers(0, 9, (2, 2)),
            np.zeros((0, 3), np.float32),
        ]

    exchanges, before = exchanges_of(ranks, arrays()), None
    for _ in range(5):  # both buffers, and again
        own = [arrays() for _ in ranks]
        written = [array for part in own for array in part]
        for future in start(threads, exchanges, own):
            found = future.result(timeout=30)
            for array, expected in zip(found, written, strict=True):
                assert array.dtype == expected.dtype
                assert array.ctypes.data % 64 == 0  # else TensorFlow copies it
                np.testing.assert_array_equal(array, expected)
        if before is not None:  # the last result is still intact while this one is written
            for array, expected in zip(*before, strict=True):
                np.testing.assert_array_equal(array, expected)
        before = found, written


@pytest.mark.parametrize("others", [ONES, MANY])
@pytest.mark.parametrize("odd", [np.ones(4, np.float32), np.ones(5000, np.int32)])
def test_ranks_that_reduce_different_tensors_are_told(others, odd, ranks, threads):
    exchanges = exchanges_of(ranks[:2], [others]) + exchanges_of(ranks[2:], [odd])
    for future in start(threads, exchanges, [[others], [others], [odd]]):
        with pytest.raises(RuntimeError, match="reduces different tensors from rank"):
            future.result(timeout=30)


def test_ranks_that_reduce_in_another_order_are_told(ranks, threads):
    first, second = exchanges_of(ranks), exchanges_of(ranks)
    for exchanges in (first, second):
        for future in start(threads, exchanges, [[ONES]] * SIZE):
            future.result(timeout=30)
    for future in start(threads, [*first[:2], second[2]], [[ONES]] * SIZE):
        with pytest.raises(RuntimeError, match="reduces different tensors from rank"):
            future.result(timeout=30)


def test_a_lost_process_is_named(ranks, threads):
    waiting = start(threads, exchanges_of(ranks[:2]), [[ONES]] * 2)
    ranks[2].close()
    for future in waiting:
        with pytest.raises(ConnectionError, match="the connection to rank 2 was lost"):
            future.result(timeout=30)


def test_a_process_may_be_late_but_not_stopped(ranks, threads, monkeypatch, caplog):
    monkeypatch.setattr(shared_memory, "_REMINDER_SECONDS", 1)
    exchanges = exchanges_of(ranks)
    early = start(threads, exchanges[:2], [[ONES]] * 2)
    threading.Event().wait(2.5)  # longer than the interval at which the others are checked
    assert not any(future.done() for future in early)
    for future in [*early, *start(threads, exchanges[2:], [[ONES]])]:
        np.testing.assert_array_equal(future.result(timeout=30), [ONES] * SIZE)
    assert "rank 0 has been waiting for rank 2" in caplog.text

    for group in ranks:
        group._timeout = 2
    monkeypatch.setattr(shared_memory, "_is_stopped", lambda process: process == os.getpid())
    (waiting,) = start(threads, exchanges[:1], [[ONES]])
    with pytest.raises(ConnectionError, match="the connection to rank 1 was lost"):
        waiting.result(timeout=30)


def test_a_stopped_process_is_detected():
    with psutil.Popen(["sleep", "60"]) as child:
        assert not shared_memory._is_stopped(child.pid)
        child.suspend()
        while child.status() != psutil.STATUS_STOPPED:
            pass
        assert shared_memory._is_stopped(child.pid)
        child.kill()
    assert not shared_memory._is_stopped(child.pid)


def test_reductions_run_in_the_order_of_tracing(ranks):
    """Otherwise a rank could wait in one reduction for a rank that waits in another."""

    @tf.function
    def reduce(x: tf.Tensor) -> tf.Tensor:
        independent = [ranks[0].gather([x + number]) for number in range(4)]
        return tf.add_n([part[0] for parts in independent for part in parts])

    graph = reduce.get_concrete_function(tf.TensorSpec([2], tf.float32)).graph
    calls = [op for op in graph.get_operations() if op.type == "PyFunc"]
    assert len(calls) == 4
    for earlier, later in itertools.pairwise(calls):
        assert earlier in later.control_inputs


def test_nothing_stays_open(ranks, threads):
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    exchanges = exchanges_of(ranks, [MANY])
    for _ in range(3):
        for future in start(threads, exchanges, [[MANY]] * SIZE):
            future.result(timeout=30)
    assert count() == before + SIZE * SIZE  # one descriptor per mapping
    threads.shutdown()
    del exchanges, future
    assert count() == before


def test_tensorflow_does_not_keep_the_memory_alive(ranks):
    @tf.function
    def reduce(x: tf.Tensor) -> tf.Tensor:
        return tf.add_n([part[0] for part in ranks[0].gather([x])])

    reduce.get_concrete_function(tf.TensorSpec([5000], tf.float32))
    (exchange,) = map(weakref.ref, ranks[0]._exchanges)
    assert exchange() is not None
    ranks[0].close()
    gc.collect()
    assert exchange() is None
    with pytest.raises(tf.errors.UnknownError, match="was closed"):
        reduce(tf.constant(MANY))


def test_all_share_memory_or_none(threads):
    run_id, barrier = secrets.token_hex(8), threading.Barrier(SIZE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(shared_memory._address(run_id, 1))
        futures = [
            threads.submit(
                SharedMemoryGroup, rank, SIZE, run_id, lambda: (barrier.wait(), None)[1], 1.0
            )
            for rank in range(SIZE)
        ]
        for future in futures:
            assert isinstance(future.exception(timeout=30), OSError)


@pytest.mark.parametrize("kind", [tf.float32, tf.bfloat16, tf.float16])
def test_what_is_packed_is_unpacked(kind):
    """Wherever the large tensors are in the list, and whatever their types."""
    random = np.random.default_rng(1)
    tensors = []
    for index in range(24):
        shape = (SMALL_ELEMENTS + 1,) if index % 3 else (index, 2)
        tensors.append(tf.cast(random.normal(size=shape), kind if index % 4 else tf.float32))
    packed, unpack = pack(tensors)
    assert len(packed) == sum(bool(index % 3) for index in range(24)) + (
        1 if kind == tf.float32 else 2
    )
    for found, tensor in zip(unpack(packed), tensors, strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found, tensor)
