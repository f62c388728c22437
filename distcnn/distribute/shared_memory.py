"""Exchanges tensors between all processes of one host through shared memory.

Horovod sends tensors through sockets. Copying and waiting there takes a sixth of a step if the same
CPUs also compute. Here each process writes into its own memory, which the others can read, signals
this through a Unix socket, and reads theirs in place; small tensors are sent through the socket
itself. Neither the memory nor the sockets have a name in the file system, so nothing is left
behind, however a process ends.
"""

import contextlib
import logging
import math
import mmap
import os
import select
import socket
import struct
import time
import weakref
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

log = logging.getLogger("distcnn")

_ALIGNMENT = 64
"""Alignment in bytes of memory that TensorFlow can read in place."""

_INLINE_BYTES = 2**14
"""Up to this many bytes are sent through the sockets, far less than their buffers hold."""

_REMINDER_SECONDS = 60
"""Time after which a process logs which ranks it is waiting for, as Horovod does."""

_HEADER = struct.Struct("<QQQ")
"""Number of the exchange, checksum of its shapes and types, bytes in shared memory."""

_RANK = struct.Struct("<Q")

_CREDENTIALS = struct.Struct("3i")
"""Ids of the process, user and group at the other end of a socket."""

_Layout = Sequence[tuple[int, tuple[int, ...], np.dtype]]
"""Byte offset, shape and type of each tensor in a buffer."""


class SharedMemoryGroup:
    """The processes of a run on one host, each connected to all others.

    Only processes of the same user are accepted.

    Args:
        rank: Rank of this process.
        size: Number of processes, at least 2.
        run_id: Identifies the run, the same in all of its processes.
        barrier: Waits until every process has arrived.
        timeout: Seconds that a process may take to connect, or may be stopped (SIGSTOP) later.

    Raises:
        OSError: If the processes cannot connect or share memory.
        ValueError: Likewise.
    """

    def __init__(
        self, rank: int, size: int, run_id: str, barrier: Callable[[], None], timeout: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.numbered_exchanges = 0
        self._timeout = timeout
        self._exchanges: list[TensorExchange] = []
        self._peers: dict[int, socket.socket] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._peers)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(_address(run_id, rank))
                listener.listen(2 * size)
            finally:
                barrier()
            deadline = time.monotonic() + timeout
            try:
                for lower in range(rank):
                    self._peers[lower] = _connect(run_id, rank, lower, timeout)
                while len(self._peers) < size - 1:
                    _accept(listener, self._peers, range(rank + 1, size), deadline)
                self._processes = {r: _credentials(p)[0] for r, p in self._peers.items()}
                # Only an attempt shows whether memory can be shared.
                TensorExchange(self, [tf.TensorSpec([_INLINE_BYTES + 1], tf.uint8)]).run(
                    np.zeros(_INLINE_BYTES + 1, np.uint8)
                )
            except BaseException:
                self.close()
                raise

    def gather(self, tensors: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Sends the tensors of every process to every other.

        The result is the shared memory itself, valid until this operation is executed again; in a
        loop, an iteration must finish before the next begins. Every process, including this one,
        gets the same kind of memory, so that all compute in the same way: TensorFlow may sum in
        another order if it can write to a buffer. Within a function, TensorFlow executes these
        operations in the order of tracing, the same everywhere; otherwise two processes could wait
        for each other.

        Args:
            tensors: The same number, of the same static shapes and types, in every process.

        Returns:
            The tensors of each process, in rank order.
        """
        exchange = TensorExchange(self, tensors)
        self._exchanges.append(exchange)
        # TensorFlow keeps the function for ever, so it must not keep the exchange alive.
        reference = weakref.ref(exchange)

        def run_exchange(*arrays: np.ndarray) -> list[np.ndarray]:
            exchange = reference()
            if exchange is None:
                raise ConnectionError("the connection to the other ranks was closed")
            return exchange.run(*arrays)

        flat = tf.numpy_function(run_exchange, tensors, [t.dtype for t in tensors] * self.size)
        gathered = [flat[i : i + len(tensors)] for i in range(0, len(flat), len(tensors))]
        for of_process in gathered:
            for own, tensor in zip(tensors, of_process, strict=True):
                tensor.set_shape(own.shape)
        return gathered

    def send_to_all(self, content: bytes, descriptors: Sequence[int]) -> None:
        """Sends a message and descriptors of open files to every other process."""
        lost = None
        for rank, peer in self._peers.items():
            try:
                socket.send_fds(peer, [content], descriptors)
            except OSError:
                lost = rank if lost is None else lost  # raised once all others have the message
        if lost is not None:
            raise _connection_lost(lost)

    def receive_from_all(self, size: int) -> dict[int, tuple[bytes, list[int]]]:
        """Waits for a message of at most `size` bytes from every other process."""
        received: dict[int, tuple[bytes, list[int]]] = {}
        stopped_seconds, began, reminded = dict.fromkeys(self._peers, 0.0), time.monotonic(), False
        while len(received) < len(self._peers):
            waiting = {p.fileno(): rank for rank, p in self._peers.items() if rank not in received}
            poll = select.poll()
            for descriptor in waiting:
                poll.register(descriptor, select.POLLIN)
            ready = [waiting[descriptor] for descriptor, _ in poll.poll(1000)]
            for rank in ready:
                received[rank] = _receive(self._peers[rank], rank, size)
            if ready:
                continue
            # A process may be busy with other work for any time, but not stopped.
            for rank in sorted(waiting.values()):
                is_stopped = _is_stopped(self._processes[rank])
                stopped_seconds[rank] = stopped_seconds[rank] + 1 if is_stopped else 0
                if stopped_seconds[rank] >= self._timeout:
                    raise _connection_lost(rank)
            if not reminded and time.monotonic() - began > _REMINDER_SECONDS:
                names = ", ".join(map(str, sorted(waiting.values())))
                log.error("rank %d has been waiting for rank %s for a minute", self.rank, names)
                reminded = True
        return received

    def close(self) -> None:
        """Closes the connections to the other processes."""
        self._finalizer()
        self._exchanges.clear()


class TensorExchange:
    """An exchange of tensors of fixed shapes and types, double-buffered.

    The other processes may still be reading the last tensors when a process writes the next, so
    each has two buffers. It writes into a buffer again only after every other process has announced
    that it has written its other buffer, and so has finished reading this one.

    Args:
        group: The processes.
        tensors: Tensors, or their specifications, of those shapes and types.
    """

    def __init__(
        self, group: SharedMemoryGroup, tensors: Sequence[tf.Tensor | tf.TensorSpec]
    ) -> None:
        self._group = group
        self._layout: list[tuple[int, tuple[int, ...], np.dtype]] = []
        self._size = 0
        for tensor in tensors:
            dtype, shape = np.dtype(tensor.dtype.as_numpy_dtype), tuple(tensor.shape)
            self._layout.append((self._size, shape, dtype))
            size = math.prod(shape) * dtype.itemsize
            self._size += -(-size // _ALIGNMENT) * _ALIGNMENT
        self._checksum = zlib.crc32(repr(self._layout).encode())
        self._number: int | None = None
        self._buffers: dict[int, list[list[np.ndarray]]] = {}  # arrays by rank and buffer
        self._current = 0

    def run(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Writes this process's arrays, and returns those of every process in rank order."""
        if self._number is None:
            self._number = self._group.numbered_exchanges
            self._group.numbered_exchanges += 1
        if self._size <= _INLINE_BYTES:
            return self._run_inline(arrays)
        own, first = self._group.rank, not self._buffers
        with contextlib.ExitStack() as stack:
            if first:
                descriptor = os.memfd_create("distcnn")
                stack.callback(os.close, descriptor)
                os.ftruncate(descriptor, 2 * self._size)
                self._buffers[own] = self._map(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
            for target, array in zip(self._buffers[own][self._current], arrays, strict=True):
                np.copyto(target, array)
            self._group.send_to_all(self._header(self._size), [descriptor] if first else [])
            received = self._group.receive_from_all(_HEADER.size)
            for _, descriptors in received.values():
                for received_descriptor in descriptors:
                    stack.callback(os.close, received_descriptor)
            for rank, (header, descriptors) in received.items():
                self._require_same(rank, header, self._size)
                if first and not descriptors:
                    raise OSError(f"rank {rank} could not share its memory")
                if first:
                    self._buffers[rank] = self._map(descriptors[0], mmap.PROT_READ)
        in_order = [self._buffers[rank][self._current] for rank in sorted(self._buffers)]
        self._current = 1 - self._current
        return [array for of_process in in_order for array in of_process]

    def _run_inline(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        own = _aligned_buffer(self._size)
        for target, array in zip(_views(own, self._layout), arrays, strict=True):
            np.copyto(target, array)
        self._group.send_to_all(self._header(0) + own.tobytes(), [])
        contents = {self._group.rank: own}
        for rank, (message, _) in self._group.receive_from_all(_HEADER.size + self._size).items():
            self._require_same(rank, message[: _HEADER.size], 0)
            contents[rank] = _aligned_buffer(self._size)
            contents[rank][:] = np.frombuffer(message, np.uint8, offset=_HEADER.size)
        return [view for rank in sorted(contents) for view in _views(contents[rank], self._layout)]

    def _header(self, shared: int) -> bytes:
        return _HEADER.pack(self._number, self._checksum, shared)

    def _require_same(self, rank: int, header: bytes, shared: int) -> None:
        if header != self._header(shared):
            own, other = _HEADER.unpack(self._header(shared)), _HEADER.unpack(header)
            raise RuntimeError(
                f"rank {rank} reduces different tensors from rank {self._group.rank} (number, "
                f"checksum and bytes are {other} instead of {own}); start every rank with the same "
                "command, code and data"
            )

    def _map(self, descriptor: int, protection: int) -> list[list[np.ndarray]]:
        """Maps the memory of one process, and returns the arrays of each of its buffers."""
        memory = mmap.mmap(descriptor, 2 * self._size, prot=protection)
        content = np.frombuffer(memory, np.uint8)
        return [_views(buffer, self._layout) for buffer in np.split(content, 2)]


def _views(buffer: np.ndarray, layout: _Layout) -> list[np.ndarray]:
    """Returns the arrays in a buffer of bytes."""
    return [
        buffer[offset : offset + math.prod(shape) * dtype.itemsize].view(dtype).reshape(shape)
        for offset, shape, dtype in layout
    ]


def _aligned_buffer(size: int) -> np.ndarray:
    """Returns bytes that TensorFlow can read in place, however NumPy aligns its arrays."""
    content = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -content.ctypes.data % _ALIGNMENT
    return content[start : start + size]


def _receive(peer: socket.socket, rank: int, size: int) -> tuple[bytes, list[int]]:
    try:
        content, descriptors, _, _ = socket.recv_fds(peer, size, 1)
    except OSError as error:
        raise _connection_lost(rank) from error
    if not content:
        raise _connection_lost(rank)
    return content, descriptors


def _connection_lost(rank: int) -> ConnectionError:
    return ConnectionError(f"the connection to rank {rank} was lost")


def _address(run_id: str, rank: int) -> str:
    return f"\0distcnn-{run_id}-{rank}"


def _connect(run_id: str, rank: int, lower: int, timeout: float) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        peer.settimeout(timeout)
        peer.connect(_address(run_id, lower))
        if _credentials(peer)[1] != os.geteuid():
            raise OSError(f"a process of another user answered in place of rank {lower}")
        peer.send(_RANK.pack(rank))
    except OSError:
        peer.close()
        raise
    return peer


def _accept(
    listener: socket.socket, peers: dict[int, socket.socket], expected: range, deadline: float
) -> None:
    """Accepts the next process, if it is this user's and has a rank that is still missing."""
    listener.settimeout(max(deadline - time.monotonic(), 0.001))
    peer, _ = listener.accept()
    peer.settimeout(max(deadline - time.monotonic(), 0.001))
    if _credentials(peer)[1] == os.geteuid():
        message = peer.recv(_RANK.size)
        rank = _RANK.unpack(message)[0] if len(message) == _RANK.size else -1
        if rank in expected and rank not in peers:
            peers[rank] = peer
            return
    peer.close()


def _close_all(peers: dict[int, socket.socket]) -> None:
    for peer in peers.values():
        peer.close()


def _credentials(peer: socket.socket) -> tuple[Any, ...]:
    content = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(content)


def _is_stopped(process: int) -> bool:
    """Returns whether a process of this host is stopped, as by SIGSTOP."""
    try:
        content = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return content.rpartition(")")[2].split()[0] in ("T", "t")
