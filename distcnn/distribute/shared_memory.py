"""Tensors from every process of one host to every other, through memory that they share.

Horovod carries them through sockets, whose copying and waiting costs CPUs that compute as well a
sixth of a step. Here each process writes into memory of its own, which the others see, says so
through a Unix socket, and reads theirs in place. Neither memory nor sockets have a name in the file
system, so nothing is left behind, however a process ends.
"""

import contextlib
import math
import mmap
import os
import socket
import struct
import weakref
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import psutil
import tensorflow as tf

_ALIGNMENT = 64
"""What TensorFlow demands of memory that it reads in place."""

_PATIENCE_SECONDS = 30
"""How long a process may not come, or stand still; as long as Horovod waits."""

_MESSAGE = struct.Struct("<QQ")
"""Checksum of shapes and types, and their bytes."""

_CREDENTIALS = struct.Struct("3i")
"""Process, user and group at the other end of a socket."""


class Neighbours:
    """The processes of a run on one host, each connected with each.

    Args:
        rank: Number of this process.
        size: Number of processes, at least 2.
        token: Name of the run, the same in all of them, which no one else can guess.
        barrier: Waits until every process is here.

    Raises:
        OSError: If they cannot be connected.
    """

    def __init__(self, rank: int, size: int, token: str, barrier: Callable[[], None]) -> None:
        self.rank = rank
        self.size = size
        self._last: tf.Operation | None = None
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            try:
                listener.settimeout(_PATIENCE_SECONDS)
                listener.bind(_address(token, rank))
                listener.listen(size)
            finally:
                barrier()
            peers = {lower: _connect(token, rank, lower) for lower in range(rank)}
            while len(peers) < size - 1:
                higher, peer = _accept(listener)
                peers[higher] = peer
        self._peers = dict(sorted(peers.items()))
        self._processes = {r: _credentials(peer)[0] for r, peer in self._peers.items()}
        for peer in self._peers.values():
            peer.settimeout(1.0)

    def gather(self, tensors: Sequence[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Carries tensors of every process to every other.

        What comes back is the memory itself, which holds until this is executed once more; in a
        loop, an iteration has to be done before the next begins. It is the same kind of memory for
        every process, this one included, so that all compute with it in the same way: TensorFlow
        may add up in another order if it finds a buffer that it can write to.

        Args:
            tensors: The same number, of the same known shapes and types, in every process.

        Returns:
            For each process in order its tensors.
        """
        channel = Channel(self, tensors)
        kinds = [tensor.dtype for tensor in tensors]
        # In the order of tracing, the same everywhere: else two could wait for each other.
        with tf.control_dependencies(self._before()):
            found = tf.numpy_function(channel.exchange, tensors, kinds * self.size)
        if not tf.executing_eagerly():
            self._last = found[0].op
        parts = [found[i : i + len(tensors)] for i in range(0, len(found), len(tensors))]
        for part in parts:
            for own, tensor in zip(tensors, part, strict=True):
                tensor.set_shape(own.shape)
        return parts

    def tell(self, content: bytes, descriptors: Sequence[int]) -> None:
        """Sends a message and descriptors of open files to every other process."""
        for rank, peer in self._peers.items():
            try:
                socket.send_fds(peer, [content], descriptors)
            except OSError as error:
                raise self._lost(rank) from error

    def hear(self) -> dict[int, tuple[bytes, list[int]]]:
        """Waits for a message of every other process."""
        return {rank: self._hear(rank, peer) for rank, peer in self._peers.items()}

    def _hear(self, rank: int, peer: socket.socket) -> tuple[bytes, list[int]]:
        still = 0
        while True:
            try:
                content, descriptors, _, _ = socket.recv_fds(peer, _MESSAGE.size, 1)
            except TimeoutError:
                # It may have other things to do, as long as it is not stopped altogether.
                still = still + 1 if _stands_still(self._processes[rank]) else 0
                if still >= _PATIENCE_SECONDS:
                    raise self._lost(rank) from None
            except OSError as error:
                raise self._lost(rank) from error
            else:
                if not content:
                    raise self._lost(rank)
                return content, descriptors

    def close(self) -> None:
        """Takes leave of the others."""
        for peer in self._peers.values():
            peer.close()

    def _before(self) -> list[tf.Operation]:
        known = self._last is not None and not tf.executing_eagerly()
        same = known and self._last.graph is tf.compat.v1.get_default_graph()  # type: ignore[union-attr]
        return [self._last] if same else []

    def _lost(self, rank: int) -> ConnectionError:
        return ConnectionError(f"the connection to rank {rank} was lost")


class Channel:
    """Memory for tensors of given shapes and types, twice: the others may still read the last.

    A process writes into the same half again only after every other has said that it has written
    the other half, and so is done with reading this one.
    """

    def __init__(
        self,
        neighbours: Neighbours,
        tensors: Sequence[tf.Tensor | tf.TensorSpec],
    ) -> None:
        self._neighbours = neighbours
        self._places: list[tuple[int, tuple[int, ...], np.dtype]] = []
        self._size = 0
        for tensor in tensors:
            kind, shape = np.dtype(tensor.dtype.as_numpy_dtype), tuple(tensor.shape)
            self._places.append((self._size, shape, kind))
            count = math.prod(shape) * kind.itemsize
            self._size += -(-count // _ALIGNMENT) * _ALIGNMENT
        self._message = _MESSAGE.pack(zlib.crc32(repr(self._places).encode()), self._size)
        self._descriptor = os.memfd_create("distcnn")
        self._close = weakref.finalize(self, os.close, self._descriptor)
        os.ftruncate(self._descriptor, 2 * self._size)
        own = self._map(self._descriptor, mmap.PROT_READ | mmap.PROT_WRITE)
        self._halves = {neighbours.rank: own}
        self._half = 0

    def exchange(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Writes this process's arrays, and returns those of every process in order."""
        for place, array in zip(
            self._halves[self._neighbours.rank][self._half], arrays, strict=True
        ):
            np.copyto(place, array)
        first = len(self._halves) == 1
        self._neighbours.tell(self._message, [self._descriptor] if first else [])
        for rank, (content, descriptors) in self._neighbours.hear().items():
            with contextlib.ExitStack() as stack:
                files = [stack.enter_context(os.fdopen(each, "rb")) for each in descriptors]
                if content != self._message or bool(files) != first:
                    raise RuntimeError(
                        f"rank {rank} reduces other tensors ({_MESSAGE.unpack(content)[1]} bytes) "
                        f"than rank {self._neighbours.rank} ({self._size} bytes); start every rank "
                        "with the same command and code"
                    )
                if first:
                    self._halves[rank] = self._map(files[0].fileno(), mmap.PROT_READ)
        if first:
            self._close()
        found = [array for rank in sorted(self._halves) for array in self._halves[rank][self._half]]
        self._half = 1 - self._half
        return found

    def _map(self, descriptor: int, protection: int) -> list[list[np.ndarray]]:
        """Returns the arrays of each half."""
        memory = mmap.mmap(descriptor, 2 * self._size, prot=protection)
        return [
            [
                np.frombuffer(memory, kind, math.prod(shape), half + offset).reshape(shape)
                for offset, shape, kind in self._places
            ]
            for half in (0, self._size)
        ]


def _address(token: str, rank: int) -> str:
    return f"\0distcnn-{token}-{rank}"


def _connect(token: str, rank: int, lower: int) -> socket.socket:
    peer = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    peer.settimeout(_PATIENCE_SECONDS)
    peer.connect(_address(token, lower))
    peer.send(struct.pack("<Q", rank))
    return peer


def _accept(listener: socket.socket) -> tuple[int, socket.socket]:
    """Returns the next process of this user that connects, and its rank."""
    while True:
        peer, _ = listener.accept()
        if _credentials(peer)[1] == os.getuid():
            peer.settimeout(_PATIENCE_SECONDS)
            (rank,) = struct.unpack("<Q", peer.recv(8))
            return rank, peer
        peer.close()


def _credentials(peer: socket.socket) -> tuple[Any, ...]:
    content = peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    return _CREDENTIALS.unpack(content)


def _stands_still(process: int) -> bool:
    try:
        return bool(psutil.Process(process).status() == psutil.STATUS_STOPPED)
    except psutil.Error:
        return False
