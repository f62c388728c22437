"""Horovod: one process per device; gradients go through grouped, fused allreduce or shared memory.

Horovod's Keras wrapper runs under Keras 3 but silently does not reduce, so only its operations are
used. They run outside XLA, which cannot compile them.
"""

import logging
import math
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.distribute.alike import are_alike
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.overlap import spare_a_thread
from distcnn.distribute.packing import (
    SHORT_MESSAGE_BYTES,
    SMALL_ELEMENTS,
    as_message,
    from_bits,
    pack,
    packed_sum,
    sum_over_processes,
    to_bits,
    undo_upcast,
)
from distcnn.distribute.rendezvous import Rendezvous
from distcnn.distribute.shared_memory import SharedMemoryGroup
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster

log = logging.getLogger("distcnn")

_SUM_TYPES = {tf.bfloat16: tf.float32}
"""Types that Horovod does not support, and the types they are summed as."""

_MAX_SHARING_PROCESSES = 4
"""Up to this many processes read each other's tensors from shared memory and sum them locally."""

_TIMEOUT_SECONDS = 30
"""How long Horovod waits for an unresponsive process by default."""

_IDLE_CYCLE_MS = "100"
"""How often Horovod, as distcnn builds it, asks the other ranks while this one has nothing to
send."""


class Horovod(Backend):
    """One replica per process.

    Args:
        cluster: The processes of the run, and which of them this one is.
        compression: `fp16` to send gradients as float16.
        port: First port of the run, or None to derive it from the job; used unless Horovod's own
            launcher started the processes.
        shared_memory: Whether steps may be reduced through memory that the processes share.
        bucket_bytes: Bytes of gradients to send at once, unless memory is shared.
        factors: Whether gradients may travel as factors, if all processes compute alike and
            memory is not shared.

    Raises:
        DistcnnError: If Horovod is missing, or the processes cannot connect.
    """

    name = "horovod"

    def __init__(
        self,
        cluster: Cluster,
        compression: Literal["none", "fp16"],
        port: int | None,
        *,
        shared_memory: bool = True,
        bucket_bytes: int = 0,
        factors: bool = True,
    ) -> None:
        self._hvd = import_horovod()
        self._rendezvous = Rendezvous(cluster, port)
        environment = self._rendezvous.open()
        self._compression = compression
        self._on_cpu = cluster.size > 1 and not tf.config.get_visible_devices("GPU")
        few_processes = cluster.size <= _MAX_SHARING_PROCESSES and compression == "none"
        can_share_memory = self._on_cpu and cluster.one_host and hasattr(os, "memfd_create")
        use_shared_memory = shared_memory and can_share_memory and few_processes
        if self._on_cpu:
            os.environ.setdefault("HOROVOD_IDLE_CYCLE_TIME", _IDLE_CYCLE_MS)
            os.environ.setdefault("HOROVOD_FUSION_THRESHOLD", "0")  # tensors come packed
        if bucket_bytes and cluster.size > 1 and not use_shared_memory:
            spare_a_thread()
        os.environ.update(environment)  # the only way to configure Horovod
        try:
            self._hvd.init()
        except Exception as error:
            raise DistcnnError(
                f"rank {cluster.rank} cannot connect to the other ranks through Horovod: {error}"
            ) from error
        started_as = (self._hvd.rank(), self._hvd.size())
        if started_as != (cluster.rank, cluster.size):
            raise DistcnnError(
                f"{cluster.scheme} reports rank {cluster.rank} of {cluster.size}, but Horovod "
                f"started as rank {started_as[0]} of {started_as[1]}; was it built for this "
                "launcher? For mpirun, run distcnn install-horovod --mpi"
            )
        self.rank, self.size = started_as
        with reporting_lost_peers(self):
            self._shared_memory = (
                self._join_shared_memory(use_shared_memory) if self.size > 1 else None
            )
            alike = self.size > 1 and are_alike(self)
        # Through shared memory, a gradient takes no longer than the products.
        self.sends_factors = alike and factors and self._on_cpu and not self._shared_memory
        self.bucket_bytes = 0 if self._shared_memory else bucket_bytes

    @property
    @override
    def transport(self) -> str:
        return "shared memory" if self._shared_memory else "Horovod"

    def _join_shared_memory(self, use_shared_memory: bool) -> SharedMemoryGroup | None:
        """Connects to the other processes of the host; either all of them connect, or none."""
        if not self._all_agree(use_shared_memory):  # different settings are reported later
            return None
        run_id = self.broadcast_object(secrets.token_hex(16))
        group = None
        try:
            timeout = float(os.environ.get("HOROVOD_GLOO_TIMEOUT_SECONDS", _TIMEOUT_SECONDS))
            group = SharedMemoryGroup(self.rank, self.size, run_id, self.barrier, timeout)
        except (OSError, ValueError) as error:
            reason = str(error)
        if self._all_agree(group is not None):
            return group
        if group is not None:
            group.close()
            reason = "another rank failed to connect"
        if self.is_chief:
            log.warning(
                "warning: gradients go through Horovod, since shared memory cannot be used: %s",
                reason,
            )
        return None

    def _all_agree(self, vote: bool) -> bool:
        return bool(self.sum(np.array([float(vote)]))[0] == self.size)

    @override
    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        if not self._on_cpu or not all(t.shape.is_fully_defined() for t in tensors):
            return self._allreduce(tensors, compressible)
        small = SMALL_ELEMENTS if self._shared_memory else math.inf
        wire = self._to_wire(tensors, compressible)
        sums = packed_sum(wire, self._sum_packed, self.reduce_sum, small=small)
        return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]

    @override
    def wire_type(self, tensor: tf.Tensor, *, compressible: bool, replicas: int) -> tf.DType:
        # More than two processes round the sum, which only gradients may be.
        exact = self._shared_memory is not None or replicas == 2
        narrows = self._on_cpu and (compressible or exact)
        dtype = undo_upcast(tensor).dtype if narrows else tensor.dtype
        if self._compression == "fp16" and compressible and dtype.is_floating and dtype.size > 2:
            return tf.float16
        return dtype if self._on_cpu else _SUM_TYPES.get(dtype, dtype)

    def _to_wire(self, tensors: Sequence[tf.Tensor], compressible: int) -> list[tf.Tensor]:
        wire = []
        for index, tensor in enumerate(tensors):
            dtype = self.wire_type(tensor, compressible=index < compressible, replicas=self.size)
            wire.append(tf.cast(undo_upcast(tensor) if dtype.size == 2 else tensor, dtype))
        return wire

    def _sum_packed(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Sums tensors over the processes, 16-bit types in float32."""
        if self._shared_memory:
            return sum_over_processes(self._shared_memory.gather(tensors))
        if self.size == 2:
            return sum_over_processes([tensors, self._exchange(tensors)])
        return [
            self._sum_in_two_rounds(tensor)
            if tensor.dtype.size == 2
            else self._hvd.allreduce(tensor, op=self._hvd.Sum)
            for tensor in tensors
        ]

    def _exchange(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sends the tensors of each of two processes to the other, in one message.

        That moves no more bytes than a ring, and takes half the rounds.

        Returns:
            The tensors of the other process.
        """
        sent, read = as_message(tensors)
        length = sent.shape[0]
        if length * sent.dtype.size <= SHORT_MESSAGE_BYTES:
            # An alltoall copies less, but tells the other process first how much it sends.
            joined = tf.ensure_shape(self._hvd.allgather(sent), [2 * length])
            return read(tf.split(joined, 2)[1 - self.rank])
        splits = [0, 0]
        splits[1 - self.rank] = length
        received = self._hvd.alltoall(sent, splits=splits)[0]
        return read(tf.ensure_shape(received, sent.shape))

    def _sum_in_two_rounds(self, tensor: tf.Tensor) -> tf.Tensor:
        """Sums a 16-bit tensor in float32; the sum has the precision of the tensor.

        Every process sums a part of it. A ring of float32 moves twice the bytes, and Horovod
        cannot sum bfloat16.
        """
        count = tensor.shape.num_elements()
        part = -(-count // self.size)
        bits = tf.pad(to_bits(tensor), [[0, part * self.size - count]])
        parts, _ = self._hvd.alltoall(bits, splits=[part] * self.size)
        own = tf.cast(tf.reshape(from_bits(parts, tensor.dtype), [self.size, part]), tf.float32)
        total = tf.cast(tf.reduce_sum(own, axis=0), tensor.dtype)
        gathered = from_bits(self._hvd.allgather(to_bits(total)), tensor.dtype)
        return tf.reshape(gathered[:count], tensor.shape)

    def _allreduce(self, tensors: Sequence[tf.Tensor], compressible: int) -> list[tf.Tensor]:
        wire = self._to_wire(tensors, compressible)
        sums = list(wire)
        for dtype in dict.fromkeys(tensor.dtype for tensor in wire):  # a group needs a single type
            indices = [index for index, tensor in enumerate(wire) if tensor.dtype == dtype]
            group = self._hvd.grouped_allreduce([wire[i] for i in indices], op=self._hvd.Sum)
            for index, total in zip(indices, group, strict=True):
                sums[index] = total
        return [tf.cast(total, tensor.dtype) for total, tensor in zip(sums, tensors, strict=True)]

    @override
    def combine(
        self,
        tensors: Sequence[Sequence[tf.Tensor]],
        add: Callable[[Sequence[Sequence[tf.Tensor]]], tf.Tensor],
    ) -> list[tf.Tensor]:
        if self.size == 1:
            return [add([group]) for group in tensors]
        small = SMALL_ELEMENTS if self._shared_memory else math.inf
        by_turn = [pack(turn, small=small) for turn in zip(*tensors, strict=True)]
        groups = list(zip(*(packed for packed, _ in by_turn), strict=True))
        unpack = by_turn[0][1]
        if not self._shared_memory and not (self._on_cpu and self.size == 2):
            return unpack([self._add_in_two_rounds(group, add) for group in groups])
        flat = [tensor for group in groups for tensor in group]
        if self._shared_memory:
            gathered = self._shared_memory.gather(flat)
        else:
            both = [flat, self._exchange(flat)]
            gathered = both[:: 1 - 2 * self.rank]
        # What is in shared memory must not be sliced: TensorFlow might write to a slice.
        turns = len(by_turn)
        starts = range(0, len(flat), turns)
        return unpack([add([own[k : k + turns] for own in gathered]) for k in starts])

    def _add_in_two_rounds(
        self,
        group: Sequence[tf.Tensor],
        add: Callable[[Sequence[Sequence[tf.Tensor]]], tf.Tensor],
    ) -> tf.Tensor:
        """Lets every process add a part of the vectors, then gathers the parts."""
        turns, count = len(group), group[0].shape[0]
        part = -(-count // self.size)
        padded = tf.pad(tf.stack(group), [[0, 0], [0, part * self.size - count]])
        by_process = tf.transpose(tf.reshape(padded, [turns, self.size, part]), [1, 0, 2])
        splits = [turns * part] * self.size
        parts, _ = self._hvd.alltoall(tf.reshape(by_process, [-1]), splits=splits)
        own = tf.reshape(parts, [self.size, turns, part])
        total = add([tf.unstack(of_process) for of_process in tf.unstack(own)])
        return tf.reshape(self._hvd.allgather(total), [part * self.size])[:count]

    @override
    def gather_rows(self, tensors: Sequence[tf.Tensor], *, equal: bool = False) -> list[tf.Tensor]:
        if self.size == 1:
            return list(tensors)
        return [self._join(tensor) for tensor in tensors]

    def _join(self, tensor: tf.Tensor) -> tf.Tensor:
        if self._on_cpu and tensor.dtype == tf.bfloat16:
            return tf.bitcast(self._hvd.allgather(tf.bitcast(tensor, tf.uint16)), tf.bfloat16)
        wire = tf.cast(tensor, _SUM_TYPES.get(tensor.dtype, tensor.dtype))
        return tf.cast(self._hvd.allgather(wire), tensor.dtype)

    @override
    def sum(self, values: np.ndarray) -> np.ndarray:
        tensor = tf.constant(values, tf.float64)
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name="distcnn.sum").numpy()

    @override
    def broadcast(self, values: np.ndarray, source: int = 0) -> np.ndarray:
        tensor = tf.constant(values, tf.float64)
        return self._hvd.broadcast(tensor, root_rank=source, name="distcnn.broadcast").numpy()

    @override
    def close(self) -> None:
        if self._shared_memory:
            self._shared_memory.close()
        self._hvd.shutdown()

    @override
    def lost_peer(self, error: BaseException) -> str | None:
        from horovod.common.exceptions import HorovodInternalError

        # Mismatched shapes, NCCL failures and lack of memory are errors of this rank, to be shown.
        signs = ("has been shut down", "Connection", "connection", "timed out", "Broken pipe")
        kinds = (HorovodInternalError, tf.errors.UnknownError, tf.errors.AbortedError)
        if not isinstance(error, kinds) or not any(sign in str(error) for sign in signs):
            return None
        named = re.search(r"the connection to (rank \d+) was lost", str(error))
        return named[1] if named else "another rank"


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
            f"Horovod does not work with TensorFlow {tf.__version__} ({type(error).__name__}); run "
            "distcnn install-horovod to rebuild it"
        ) from error
    return hvd
