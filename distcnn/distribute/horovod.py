"""Horovod: a process a device, gradients reduced by grouped, fused allreduce or shared memory.

Horovod's Keras wrapper runs under Keras 3 and silently does not reduce, so only its operations are
used. They stand outside XLA, which cannot compile them.
"""

import logging
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.rendezvous import Rendezvous
from distcnn.distribute.shared_memory import SharedMemoryGroup
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster

log = logging.getLogger("distcnn")

_WIRE_TYPES = {tf.bfloat16: tf.float32}
"""Types that Horovod does not have, and those in which they travel."""

_GATHERED_PROCESSES = 4
"""Up to so many processes each reads what all the others have; a gather of halves then moves no
more bytes than a ring of float32."""

_SMALL = 4096
"""Elements up to which tensors travel together."""

_PATIENCE_SECONDS = 30
"""How long Horovod waits for a process that stands still, unless it is told otherwise."""

_IDLE_CYCLE_MS = "10"
"""How often Horovod looks for work where the steps do not need it: each look costs time."""


class Horovod(Backend):
    """One replica a process.

    Args:
        cluster: Where this process stands.
        compression: Whether gradients travel as float16.
        port: First port of the run, where Horovod's own launcher does not say.
        shared_memory: Whether steps may be reduced through memory that the processes share.

    Raises:
        DistcnnError: If Horovod is missing, or the processes do not find each other.
    """

    name = "horovod"

    def __init__(
        self,
        cluster: Cluster,
        compression: Literal["none", "fp16"],
        port: int | None,
        *,
        shared_memory: bool = True,
    ) -> None:
        self._hvd = import_horovod()
        self._rendezvous = Rendezvous(cluster, port)
        environment = self._rendezvous.open()
        self._compression = compression
        few = 1 < cluster.size <= _GATHERED_PROCESSES and compression == "none"
        self._gathers = few and not tf.config.get_visible_devices("GPU")
        near = self._gathers and cluster.one_host and hasattr(os, "memfd_create")
        wanted = shared_memory and near
        if wanted:
            os.environ.setdefault("HOROVOD_CYCLE_TIME", _IDLE_CYCLE_MS)
        os.environ.update(environment)  # the only way to tell Horovod
        try:
            self._hvd.init()
        except Exception as error:
            raise DistcnnError(
                f"rank {cluster.rank} cannot join the others by Horovod: {error}"
            ) from error
        found = (self._hvd.rank(), self._hvd.size())
        if found != (cluster.rank, cluster.size):
            raise DistcnnError(
                f"{cluster.scheme} says that this is rank {cluster.rank} of {cluster.size}, but "
                f"Horovod started as {found[0]} of {found[1]}; was it built for this launcher? "
                "distcnn install-horovod --mpi serves mpirun"
            )
        self.rank, self.size = found
        with reporting_lost_peers(self):
            self._shared_memory = self._join_shared_memory(wanted) if self.size > 1 else None

    @property
    def transport(self) -> str:
        """See `Backend.transport`."""
        return "shared memory" if self._shared_memory else "Horovod"

    def _join_shared_memory(self, wanted: bool) -> SharedMemoryGroup | None:
        """Connects with the other processes of the host; all of them or none."""
        if not self._all(wanted):  # where settings differ, they are compared later
            return None
        token = self.broadcast_object(secrets.token_hex(16))
        found = None
        try:
            patience = float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", _PATIENCE_SECONDS))
            found = SharedMemoryGroup(self.rank, self.size, token, self.barrier, patience)
        except (OSError, ValueError) as error:
            reason = str(error)
        if self._all(found is not None):
            return found
        if found is not None:
            found.close()
            reason = "another rank could not"
        if self.is_chief:
            log.warning("warning: the processes of this host share no memory: %s", reason)
        return None

    def _all(self, agrees: bool) -> bool:
        return bool(self.sum(np.array([float(agrees)]))[0] == self.size)

    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        """See `Backend.reduce_sum`."""
        as_computed = [_as_computed(tensor) for tensor in tensors]
        if self._shared_memory and all(t.shape.is_fully_defined() for t in tensors):
            return self._sum_by_shared_memory(as_computed, [t.dtype for t in tensors])
        if self._gathers and any(t.dtype.size == 2 for t in as_computed):
            sums = _add_up(self._gather_bits(as_computed))
            return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]
        return self._allreduce(tensors, compressible)

    def _sum_by_shared_memory(
        self, tensors: list[tf.Tensor], kinds: Sequence[tf.DType]
    ) -> list[tf.Tensor]:
        group = self._shared_memory
        assert group is not None

        @tf.custom_gradient
        def shared(*own: tf.Tensor) -> Any:
            packed, unpack = _pack(own)
            sums = unpack(_add_up(group.gather(packed)))

            def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
                back = self.reduce_sum(upstream)
                return [tf.cast(g, t.dtype) for g, t in zip(back, own, strict=True)]

            return [tf.cast(total, kind) for total, kind in zip(sums, kinds, strict=True)], gradient

        return list(shared(*tensors))

    def _gather_bits(self, tensors: list[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Carries the bits of every process to every other; returns the tensors of each.

        Horovod cannot add up bfloat16, but its bits are fewer bytes than a ring of float32 moves.
        """
        bits = [tf.reshape(tf.bitcast(tensor, tf.uint16), [-1]) for tensor in tensors]
        found = []
        for tensor, gathered in zip(tensors, self._hvd.grouped_allgather(bits), strict=True):
            width = [2] if tensor.dtype.size == 4 else []
            shape = [self.size, *tensor.shape, *width]
            found.append(tf.unstack(tf.bitcast(tf.reshape(gathered, shape), tensor.dtype)))
        return [list(parts) for parts in zip(*found, strict=True)]

    def _allreduce(self, tensors: Sequence[tf.Tensor], compressible: int) -> list[tf.Tensor]:
        wire = [self._to_wire(tensor, index < compressible) for index, tensor in enumerate(tensors)]
        sums = list(wire)
        for dtype in dict.fromkeys(tensor.dtype for tensor in wire):  # a group has one type
            places = [place for place, tensor in enumerate(wire) if tensor.dtype == dtype]
            group = self._hvd.grouped_allreduce([wire[p] for p in places], op=self._hvd.Sum)
            for place, total in zip(places, group, strict=True):
                sums[place] = total
        return [tf.cast(total, tensor.dtype) for total, tensor in zip(sums, tensors, strict=True)]

    def _to_wire(self, tensor: tf.Tensor, compressible: bool) -> tf.Tensor:
        compressed = self._compression == "fp16" and compressible and tensor.dtype.is_floating
        target = tf.float16 if compressed else _WIRE_TYPES.get(tensor.dtype, tensor.dtype)
        return tf.cast(tensor, target)

    def sum(self, values: np.ndarray) -> np.ndarray:
        """See `Backend.sum`."""
        tensor = tf.constant(values, tf.float64)
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name="distcnn.sum").numpy()

    def broadcast(self, values: np.ndarray) -> np.ndarray:
        """See `Backend.broadcast`."""
        tensor = tf.constant(values, tf.float64)
        return self._hvd.broadcast(tensor, root_rank=0, name="distcnn.broadcast").numpy()

    def close(self) -> None:
        """See `Backend.close`."""
        if self._shared_memory:
            self._shared_memory.close()
        self._hvd.shutdown()

    def lost_peer(self, error: BaseException) -> str | None:
        """See `Backend.lost_peer`."""
        from horovod.common.exceptions import HorovodInternalError

        # Shapes that differ, NCCL and memory are errors of this rank, whose text it must show.
        signs = ("has been shut down", "Connection", "connection", "timed out", "Broken pipe")
        kinds = (HorovodInternalError, tf.errors.UnknownError, tf.errors.AbortedError)
        if not isinstance(error, kinds) or not any(sign in str(error) for sign in signs):
            return None
        named = re.search(r"the connection to (rank \d+) was lost", str(error))
        return named[1] if named else "another rank"


def _pack(
    tensors: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """Joins small tensors of one type, each of which would cost a few operations of its own.

    Returns:
        The large tensors and the joined ones, and what takes such a list apart again.
    """
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alone = None if tensor.shape.num_elements() <= _SMALL else index
        groups.setdefault((tensor.dtype.name, alone), []).append(index)
    packed = [
        tf.concat([tf.reshape(tensors[index], [-1]) for index in group], 0)
        if len(group) > 1
        else tensors[group[0]]
        for group in groups.values()
    ]

    def unpack(totals: list[tf.Tensor]) -> list[tf.Tensor]:
        found = dict.fromkeys(range(len(tensors)))
        for group, total in zip(groups.values(), totals, strict=True):
            sizes = [tensors[index].shape.num_elements() for index in group]
            parts = tf.split(total, sizes) if len(group) > 1 else [total]
            for index, part in zip(group, parts, strict=True):
                found[index] = tf.reshape(part, tensors[index].shape)
        return list(found.values())

    return packed, unpack


def _add_up(parts: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Adds up the tensors of all processes in order, halves in float32."""
    sums = []
    for own in zip(*parts, strict=True):
        wide = tf.float32 if own[0].dtype.size == 2 else own[0].dtype
        sums.append(tf.add_n([tf.cast(part, wide) for part in own]))
    return sums


def _as_computed(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bfloat16 tensor that a float32 one is a mere copy of, else the tensor."""
    if tf.executing_eagerly() or tensor.dtype != tf.float32 or tensor.op.type != "Cast":
        return tensor
    origin = tensor.op.inputs[0]
    return origin if origin.dtype == tf.bfloat16 else tensor


def import_horovod() -> Any:
    """Imports Horovod's operations for TensorFlow.

    Raises:
        DistcnnError: If it is not installed, or was built for another TensorFlow.
    """
    try:
        import horovod.tensorflow as hvd
    except ImportError as error:
        raise DistcnnError(
            f"Horovod cannot be imported ({error}); run distcnn install-horovod, or use "
            "--distribute.strategy multi_worker"
        ) from error
    except Exception as error:
        raise DistcnnError(
            f"Horovod does not fit TensorFlow {tf.__version__} ({type(error).__name__}); run "
            "distcnn install-horovod, which builds it anew"
        ) from error
    return hvd
