"""Horovod: one process per device; gradients go through grouped, fused allreduce or shared memory.

Horovod's Keras wrapper runs under Keras 3 but silently does not reduce, so only its operations are
used. They run outside XLA, which cannot compile them.
"""

import logging
import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.rendezvous import Rendezvous
from distcnn.distribute.shared_memory import SharedMemoryGroup
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster

log = logging.getLogger("distcnn")

_WIRE_TYPES = {tf.bfloat16: tf.float32}
"""Types that Horovod does not support, and the types they are sent as."""

_MAX_GATHERING_PROCESSES = 4
"""Up to this many processes gather each other's tensors and sum them locally; gathering 16-bit
floats then moves no more bytes than a ring allreduce in float32."""

_SMALL_ELEMENTS = 4096
"""Tensors of up to this many elements are concatenated before they are sent."""

_TIMEOUT_SECONDS = 30
"""How long Horovod waits for an unresponsive process by default."""

_IDLE_CYCLE_MS = "10"
"""Interval at which Horovod polls for work while the steps do not use it: polling costs time."""


class Horovod(Backend):
    """One replica per process.

    Args:
        cluster: The processes of the run, and which of them this one is.
        compression: `fp16` to send gradients as float16.
        port: First port of the run, or None to derive it from the job; used unless Horovod's own
            launcher started the processes.
        shared_memory: Whether steps may be reduced through memory that the processes share.

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
    ) -> None:
        self._hvd = import_horovod()
        self._rendezvous = Rendezvous(cluster, port)
        environment = self._rendezvous.open()
        self._compression = compression
        few_processes = 1 < cluster.size <= _MAX_GATHERING_PROCESSES and compression == "none"
        self._may_gather = few_processes and not tf.config.get_visible_devices("GPU")
        can_share_memory = self._may_gather and cluster.one_host and hasattr(os, "memfd_create")
        use_shared_memory = shared_memory and can_share_memory
        if use_shared_memory:
            os.environ.setdefault("HOROVOD_CYCLE_TIME", _IDLE_CYCLE_MS)
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
        uncast = [_undo_upcast(tensor) for tensor in tensors]
        if self._shared_memory and all(t.shape.is_fully_defined() for t in tensors):
            return self._sum_through_shared_memory(uncast, [t.dtype for t in tensors])
        if self._may_gather and any(t.dtype.size == 2 for t in uncast):
            sums = _sum_over_processes(self._gather_bits(uncast))
            return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]
        return self._allreduce(tensors, compressible)

    def _sum_through_shared_memory(
        self, tensors: list[tf.Tensor], dtypes: Sequence[tf.DType]
    ) -> list[tf.Tensor]:
        group = self._shared_memory
        assert group is not None

        @tf.custom_gradient
        def reduce(*own: tf.Tensor) -> Any:
            packed, unpack = _pack(own)
            sums = unpack(_sum_over_processes(group.gather(packed)))

            def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
                reduced = self.reduce_sum(upstream)
                return [tf.cast(g, t.dtype) for g, t in zip(reduced, own, strict=True)]

            return [tf.cast(total, d) for total, d in zip(sums, dtypes, strict=True)], gradient

        return list(reduce(*tensors))

    def _gather_bits(self, tensors: list[tf.Tensor]) -> list[list[tf.Tensor]]:
        """Sends the tensors of every process to every other as bits; returns those of each process.

        Horovod cannot sum bfloat16, but gathering it moves no more bytes than a ring in float32.
        """
        bits = [tf.reshape(tf.bitcast(tensor, tf.uint16), [-1]) for tensor in tensors]
        by_tensor = []
        for tensor, gathered in zip(tensors, self._hvd.grouped_allgather(bits), strict=True):
            width = [2] if tensor.dtype.size == 4 else []
            shape = [self.size, *tensor.shape, *width]
            by_tensor.append(tf.unstack(tf.bitcast(tf.reshape(gathered, shape), tensor.dtype)))
        return [list(parts) for parts in zip(*by_tensor, strict=True)]

    def _allreduce(self, tensors: Sequence[tf.Tensor], compressible: int) -> list[tf.Tensor]:
        wire = [self._to_wire(tensor, index < compressible) for index, tensor in enumerate(tensors)]
        sums = list(wire)
        for dtype in dict.fromkeys(tensor.dtype for tensor in wire):  # a group needs a single type
            indices = [index for index, tensor in enumerate(wire) if tensor.dtype == dtype]
            group = self._hvd.grouped_allreduce([wire[i] for i in indices], op=self._hvd.Sum)
            for index, total in zip(indices, group, strict=True):
                sums[index] = total
        return [tf.cast(total, tensor.dtype) for total, tensor in zip(sums, tensors, strict=True)]

    def _to_wire(self, tensor: tf.Tensor, compressible: bool) -> tf.Tensor:
        compressed = self._compression == "fp16" and compressible and tensor.dtype.is_floating
        target = tf.float16 if compressed else _WIRE_TYPES.get(tensor.dtype, tensor.dtype)
        return tf.cast(tensor, target)

    @override
    def gather_rows(self, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        if self.size == 1:
            return list(tensors)
        wire = [tf.cast(tensor, _WIRE_TYPES.get(tensor.dtype, tensor.dtype)) for tensor in tensors]
        joined = [self._hvd.allgather(tensor) for tensor in wire]
        return [tf.cast(rows, t.dtype) for rows, t in zip(joined, tensors, strict=True)]

    @override
    def sum(self, values: np.ndarray) -> np.ndarray:
        tensor = tf.constant(values, tf.float64)
        return self._hvd.allreduce(tensor, op=self._hvd.Sum, name="distcnn.sum").numpy()

    @override
    def broadcast(self, values: np.ndarray) -> np.ndarray:
        tensor = tf.constant(values, tf.float64)
        return self._hvd.broadcast(tensor, root_rank=0, name="distcnn.broadcast").numpy()

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


def _pack(
    tensors: Sequence[tf.Tensor],
) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """Concatenates small tensors of the same type, to save the operations that each one costs.

    Returns:
        The large tensors and the concatenated ones, and a function that unpacks such a list.
    """
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alone = None if tensor.shape.num_elements() <= _SMALL_ELEMENTS else index
        groups.setdefault((tensor.dtype.name, alone), []).append(index)
    packed = [
        tf.concat([tf.reshape(tensors[index], [-1]) for index in group], 0)
        if len(group) > 1
        else tensors[group[0]]
        for group in groups.values()
    ]

    def unpack(totals: list[tf.Tensor]) -> list[tf.Tensor]:
        unpacked = dict.fromkeys(range(len(tensors)))
        for group, total in zip(groups.values(), totals, strict=True):
            sizes = [tensors[index].shape.num_elements() for index in group]
            parts = tf.split(total, sizes) if len(group) > 1 else [total]
            for index, part in zip(group, parts, strict=True):
                unpacked[index] = tf.reshape(part, tensors[index].shape)
        return list(unpacked.values())

    return packed, unpack


def _sum_over_processes(gathered: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Sums the tensors of all processes in rank order, 16-bit types in float32."""
    sums = []
    for parts in zip(*gathered, strict=True):
        sum_dtype = tf.float32 if parts[0].dtype.size == 2 else parts[0].dtype
        sums.append(tf.add_n([tf.cast(part, sum_dtype) for part in parts]))
    return sums


def _undo_upcast(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bfloat16 tensor that a float32 tensor was cast from, else the tensor itself."""
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
            f"Horovod does not work with TensorFlow {tf.__version__} ({type(error).__name__}); run "
            "distcnn install-horovod to rebuild it"
        ) from error
    return hvd
