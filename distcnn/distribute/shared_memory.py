"""Tensors from every process of one host to every other, through memory that they share.

Horovod carries them through sockets, whose copying and waiting costs CPUs that compute as well a
sixth of a step. Here each process writes into memory of its own, which the others see, says so
through a Unix socket, and reads theirs in place; what is small goes through the socket itself.
Neither memory nor sockets have a name in the file system, so nothing is left behind, however a
process ends.
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
"""What TensorFlow demands of memory that it reads in place."""

_INLINE_BYTES = 2**14
"""Up to so many bytes travel through the sockets, far below what those can hold."""

_REMINDER_SECONDS = 60
"""After which a process says for whom it waits; as Horovod does."""

_HEADER = struct.Struct("<QQQ")
"""Number of the channel, checksum of its shapes and types, bytes in shared memory."""

_RANK = struct.Struct("<Q")

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group at the other end of a socket."""

_Places = Sequence[tuple[int, tuple[int, ...], np.dtype]]


class SharedMemoryGroup:
    """The processes of a run on one host, each connected with each.

    Only processes of the same user are let in.

    Args:
        rank: Number of this process.
        size: Number of processes, at least 2.
        token: Name of the run, the same in all of them.
        barrier: Waits until every process is here.
        patience: Seconds for which a process may not come, or stand still.

    Raises:
        OSError: If they cannot be connected, or cannot share memory.
        ValueError: Likewise.
    """

    def __init__(
        self, rank: int, size: int, token: str, barrier: Callable[[], None], patience: float
    ) -> None:
        self.rank = rank
        self.size = size
        self.executed = 0
        self._patience = patience
        self._channels: list[Channel] = []
        self._peers: dict[int, socket.socket] = {}
        self._finalizer = weakref.finalize(self, _close_all, self._peers)
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.bind(_address(token, rank))
                listener.listen(2 * size)
            finally:
                barrier()
            deadline = time.monotonic() + patience
            try:
                for lower in range(rank):
                    self._peers[lower] = _connect(token, rank, lower, patience)
                while len(self._peers) < size - 1:
                    _accept(listener, self._peers, range(rank + 1, size), deadline)
                self._processes = {r: _credentials(p)[0] for r, p in self._peers.items()}
                # Whether memory can be shared shows only when it is.
                Channel(self, [tf.TensorSpec([_INLINE_BYTES + 1], tf.uint8)]).exchange(
                    np.zeros(_INLINE_BYTES + 1, np.uint8)
                )
            except BaseException:
                self.close()
                raise

    def gather(self, tensors: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Carries tensors of every process to every other.

        What comes back is the memory itself, which holds until this is executed once more; in a
        loop, an iteration has to be done before the next begins. It is the same kind of memory for
        every process, this one included, so that all compute with it in the same way: TensorFlow
        may add up in another order if it finds a buffer that it can write to. Within a function,
        TensorFlow executes calls in the order of tracing, the same everywhere; else two processes
        could wait for each other.

        Args:
            tensors: The same number, of the same known shapes and types, in every process.

        Returns:
            For each process in order its tensors.
        """
        channel = Channel(self, tensors)
        self._channels.append(channel)
        # TensorFlow keeps what it calls for ever, so that is not the channel itself.
        known = weakref.ref(channel)

        def exchange(*arrays: np.ndarray) -> list[np.ndarray]:
            present = known()
            if present is None:
                raise ConnectionError("the connection to the other ranks was closed")
            return present.exchange(*arrays)

        found = tf.numpy_function(exchange, tensors, [t.dtype for t in tensors] * self.size)
        parts = [found[i : i + len(tensors)] for i in range(0, len(found), len(tensors))]
        for part in parts:
            for own, tensor in zip(tensors, part, strict=True):
                tensor.set_shape(own.shape)
        return parts

    def send_to_all(self, content: bytes, descriptors: Sequence[int]) -> None:
        """Sends a message and descriptors of open files to every other process."""
        lost = None
        for rank, peer in self._peers.items():
            try:
                socket.send_fds(peer, [content], descriptors)
            except OSError:
                lost = rank if lost is None else lost  # after the others have been told
        if lost is not None:
            raise _lost(lost)

    def receive_from_all(self, size: int) -> dict[int, tuple[bytes, list[int]]]:
        """Waits for a message of every other process, of at most `size` bytes."""
        received: dict[int, tuple[bytes, list[int]]] = {}
        still, began, reminded = dict.fromkeys(self._peers, 0.0), time.monotonic(), False
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
            # One may have other things to do, as long as it is not stopped altogether.
            for rank in sorted(waiting.values()):
                stands = _stands_still(self._processes[rank])
                still[rank] = still[rank] + 1 if stands else 0
                if still[rank] >= self._patience:
                    raise _lost(rank)
            if not reminded and time.monotonic() - began > _REMINDER_SECONDS:
                names = ", ".join(map(str, sorted(waiting.values())))
                log.error("rank %d has waited for rank %s for a minute", self.rank, names)
                reminded = True
        return received

    def close(self) -> None:
        """Takes leave of the others."""
        self._finalizer()
        self._channels.clear()


class Channel:
    """Memory for tensors of given shapes and types, twice: the others may still read the last.

    A process writes into the same half again only after every other has said that it has written
    the other half, and so is done with reading this one.

    Args:
        group: The processes.
        tensors: Their shapes and types.
    """

    def __init__(
        self, group: SharedMemoryGroup, tensors: Sequence[tf.Tensor | tf.TensorSpec]
    ) -> None:
        self._group = group
        self._places: list[tuple[int, tuple[int, ...], np.dtype]] = []
        self._size = 0
        for tensor in tensors:
            kind, shape = np.dtype(tensor.dtype.as_numpy_dtype), tuple(tensor.shape)
            self._places.append((self._size, shape, kind))
            count = math.prod(shape) * kind.itemsize
            self._size += -(-count // _ALIGNMENT) * _ALIGNMENT
        self._checksum = zlib.crc32(repr(self._places).encode())
        self._number: int | None = None
        self._halves: dict[int, list[list[np.ndarray]]] = {}
        self._half = 0

    def exchange(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Writes this process's arrays, and returns those of every process in order."""
        if self._number is None:
            self._number = self._group.executed
            self._group.executed += 1
        if self._size <= _INLINE_BYTES:
            return self._exchange_inline(arrays)
        own, first = self._group.rank, not self._halves
        with contextlib.ExitStack() as stack:
            if first:
                descriptor = os.memfd_create("distcnn")
                stack.callback(os.close, descriptor)
                os.ftruncate(descriptor, 2 * self._size)
                self._halves[own] = self._map(descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
            for place, array in zip(self._halves[own][self._half], arrays, strict=True):
                np.copyto(place, array)
            self._group.send_to_all(self._header(self._size), [descriptor] if first else [])
            received = self._group.receive_from_all(_HEADER.size)
            for _, descriptors in received.values():
                for each in descriptors:
                    stack.callback(os.close, each)
            for rank, (header, descriptors) in received.items():
                self._require_same(rank, header, self._size)
                if first and not descriptors:
                    raise OSError(f"rank {rank} could not hand over its memory")
                if first:
                    self._halves[rank] = self._map(descriptors[0], mmap.PROT_READ)
        found = [array for rank in sorted(self._halves) for array in self._halves[rank][self._half]]
        self._half = 1 - self._half
        return found

    def _exchange_inline(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        own = _aligned(self._size)
        for place, array in zip(_views(own, self._places), arrays, strict=True):
            np.copyto(place, array)
        self._group.send_to_all(self._header(0) + own.tobytes(), [])
        contents = {self._group.rank: own}
        for rank, (message, _) in self._group.receive_from_all(_HEADER.size + self._size).items():
            self._require_same(rank, message[: _HEADER.size], 0)
            contents[rank] = _aligned(self._size)
            contents[rank][:] = np.frombuffer(message, np.uint8, offset=_HEADER.size)
        return [view for rank in sorted(contents) for view in _views(contents[rank], self._places)]

    def _header(self, shared: int) -> bytes:
        return _HEADER.pack(self._number, self._checksum, shared)

    def _require_same(self, rank: int, header: bytes, shared: int) -> None:
        if header != self._header(shared):
            own, other = _HEADER.unpack(self._header(shared)), _HEADER.unpack(header)
            raise RuntimeError(
                f"rank {rank} reduces other tensors than rank {self._group.rank} (number, "
                f"checksum and bytes are {other} instead of {own}); start every rank with the same "
                "command, code and data"
            )

    def _map(self, descriptor: int, protection: int) -> list[list[np.ndarray]]:
        """Returns the arrays of each half."""
        memory = mmap.mmap(descriptor, 2 * self._size, prot=protection)
        content = np.frombuffer(memory, np.uint8)
        return [_views(half, self._places) for half in np.split(content, 2)]


def _views(content: np.ndarray, places: _Places) -> list[np.ndarray]:
    """Returns the arrays that lie in some bytes."""
    return [
        content[offset : offset + math.prod(shape) * kind.itemsize].view(kind).reshape(shape)
        for offset, shape, kind in places
    ]


def _aligned(size: int) -> np.ndarray:
    """Returns bytes that TensorFlow can read in place, wherever NumPy has put them."""
    content = np.zeros(size + _ALIGNMENT, np.uint8)
    start = -content.ctypes.data % _ALIGNMENT
    return content[start : start + size]


def _receive(peer: socket.socket, rank: int, size: int) -> tuple[bytes, list[int]]:
    try:
        content, descriptors, _, _ = socket.recv_fds(peer, size, 1)
    except OSError as error:
        raise _lost(rank) from error
    if not content:
        raise _lost(rank)
    return content, descriptors


def _lost(rank: int) -> ConnectionError:
    return ConnectionError(f"the connection to rank {rank} was lost")


def _address(token: str, rank: int) -> str:
    return f"\0distcnn-{token}-{rank}"


def _connect(token: str, rank: int, lower: int, patience: float) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        peer.settimeout(patience)
        peer.connect(_address(token, lower))
        if _credentials(peer)[1] != os.geteuid():
            raise OSError(f"another user has taken the place of rank {lower}")
        peer.send(_RANK.pack(rank))
    except OSError:
        peer.close()
        raise
    return peer


def _accept(
    listener: socket.socket, peers: dict[int, socket.socket], expected: range, deadline: float
) -> None:
    """Lets the next process in, if it is of this user and says a rank that is still missing."""
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


def _stands_still(process: int) -> bool:
    """Tells whether a process of this host is stopped, as by SIGSTOP."""
    try:
        content = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False
    return content.rpartition(")")[2].split()[0] in ("T", "t")
