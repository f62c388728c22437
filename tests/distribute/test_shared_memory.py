"""Exchanges between the ends of shared memory, which here are threads of one process."""

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
from distcnn.distribute.horovod import _SMALL, _pack
from distcnn.distribute.shared_memory import Channel, SharedMemoryGroup

SIZE = 3
ONES = np.ones(3, np.float32)
"""Small enough to travel through the sockets themselves."""

MANY = np.ones(5000, np.float32)
"""So many that they need shared memory."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(SIZE) as pool:
        yield pool


@pytest.fixture
def ranks(threads: ThreadPoolExecutor) -> Iterator[list[SharedMemoryGroup]]:
    token, barrier = secrets.token_hex(8), threading.Barrier(SIZE)
    begun = [
        threads.submit(
            SharedMemoryGroup, rank, SIZE, token, lambda: (barrier.wait(), None)[1], 30.0
        )
        for rank in range(SIZE)
    ]
    found = [future.result(timeout=30) for future in begun]
    yield found
    for group in found:
        group.close()


def channels_of(
    ranks: Sequence[SharedMemoryGroup], arrays: Sequence[Any] = (ONES,)
) -> list[Channel]:
    specs = [tf.TensorSpec(array.shape, array.dtype) for array in arrays]
    return [Channel(group, specs) for group in ranks]


def exchanging(
    threads: ThreadPoolExecutor, channels: Sequence[Channel], own: Sequence[Sequence[Any]]
) -> list[Future]:
    return [threads.submit(c.exchange, *a) for c, a in zip(channels, own, strict=True)]


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

    channels, before = channels_of(ranks, arrays()), None
    for _ in range(5):  # both halves of the memory, and again
        own = [arrays() for _ in ranks]
        written = [array for part in own for array in part]
        for future in exchanging(threads, channels, own):
            found = future.result(timeout=30)
            for array, expected in zip(found, written, strict=True):
                assert array.dtype == expected.dtype
                assert array.ctypes.data % 64 == 0  # else TensorFlow copies it
                np.testing.assert_array_equal(array, expected)
        if before is not None:  # what was read last is still whole while this is written
            for array, expected in zip(*before, strict=True):
                np.testing.assert_array_equal(array, expected)
        before = found, written


@pytest.mark.parametrize("others", [ONES, MANY])
@pytest.mark.parametrize("odd", [np.ones(4, np.float32), np.ones(5000, np.int32)])
def test_ranks_that_reduce_different_tensors_are_told(others, odd, ranks, threads):
    channels = channels_of(ranks[:2], [others]) + channels_of(ranks[2:], [odd])
    for future in exchanging(threads, channels, [[others], [others], [odd]]):
        with pytest.raises(RuntimeError, match="reduces other tensors than rank"):
            future.result(timeout=30)


def test_ranks_that_reduce_in_another_order_are_told(ranks, threads):
    first, second = channels_of(ranks), channels_of(ranks)
    for channels in (first, second):
        for future in exchanging(threads, channels, [[ONES]] * SIZE):
            future.result(timeout=30)
    for future in exchanging(threads, [*first[:2], second[2]], [[ONES]] * SIZE):
        with pytest.raises(RuntimeError, match="reduces other tensors than rank"):
            future.result(timeout=30)


def test_a_process_that_is_gone_is_named(ranks, threads):
    waiting = exchanging(threads, channels_of(ranks[:2]), [[ONES]] * 2)
    ranks[2].close()
    for future in waiting:
        with pytest.raises(ConnectionError, match="the connection to rank 2 was lost"):
            future.result(timeout=30)


def test_a_process_may_be_late_but_not_stopped(ranks, threads, monkeypatch, caplog):
    monkeypatch.setattr(shared_memory, "_REMINDER_SECONDS", 1)
    channels = channels_of(ranks)
    early = exchanging(threads, channels[:2], [[ONES]] * 2)
    threading.Event().wait(2.5)  # longer than between two looks at the others
    assert not any(future.done() for future in early)
    for future in [*early, *exchanging(threads, channels[2:], [[ONES]])]:
        np.testing.assert_array_equal(future.result(timeout=30), [ONES] * SIZE)
    assert "rank 0 has waited for rank 2" in caplog.text

    for group in ranks:
        group._patience = 2
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


def test_nothing_stays_open(ranks, threads):
    def count() -> int:
        return sum(1 for _ in Path("/proc/self/fd").iterdir())

    before = count()
    channels = channels_of(ranks, [MANY])
    for _ in range(3):
        for future in exchanging(threads, channels, [[MANY]] * SIZE):
            future.result(timeout=30)
    assert count() == before + SIZE * SIZE  # a mapping has one
    threads.shutdown()
    del channels, future
    assert count() == before


def test_what_tensorflow_keeps_is_not_the_memory(ranks):
    @tf.function
    def reduce(x: tf.Tensor) -> tf.Tensor:
        return tf.add_n([part[0] for part in ranks[0].gather([x])])

    reduce.get_concrete_function(tf.TensorSpec([5000], tf.float32))
    (channel,) = map(weakref.ref, ranks[0]._channels)
    assert channel() is not None
    ranks[0].close()
    gc.collect()
    assert channel() is None
    with pytest.raises(tf.errors.UnknownError, match="was closed"):
        reduce(tf.constant(MANY))


def test_all_share_memory_or_none(threads):
    token, barrier = secrets.token_hex(8), threading.Barrier(SIZE)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as squatter:
        squatter.bind(shared_memory._address(token, 1))
        begun = [
            threads.submit(
                SharedMemoryGroup, rank, SIZE, token, lambda: (barrier.wait(), None)[1], 1.0
            )
            for rank in range(SIZE)
        ]
        for future in begun:
            assert isinstance(future.exception(timeout=30), OSError)


@pytest.mark.parametrize("kind", [tf.float32, tf.bfloat16, tf.float16])
def test_what_is_packed_is_unpacked(kind):
    """Wherever the large ones stand, of whichever types."""
    random = np.random.default_rng(1)
    tensors = []
    for index in range(24):
        shape = (_SMALL + 1,) if index % 3 else (index, 2)
        tensors.append(tf.cast(random.normal(size=shape), kind if index % 4 else tf.float32))
    packed, unpack = _pack(tensors)
    assert len(packed) == sum(bool(index % 3) for index in range(24)) + (
        1 if kind == tf.float32 else 2
    )
    for found, tensor in zip(unpack(packed), tensors, strict=True):
        assert (found.dtype, found.shape) == (tensor.dtype, tensor.shape)
        np.testing.assert_array_equal(found, tensor)
