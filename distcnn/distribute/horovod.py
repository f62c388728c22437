"""Horovod: a process a device, gradients reduced by grouped, fused allreduce.

Horovod's Keras wrapper runs under Keras 3 and silently does not reduce, so only its operations are
used. They stand outside XLA, which cannot compile them.
"""

import os
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import tensorflow as tf

from distcnn.cluster import Cluster
from distcnn.distribute.base import Backend
from distcnn.distribute.rendezvous import Rendezvous
from distcnn.errors import DistcnnError

_WIRE_TYPES = {tf.bfloat16: tf.float32}
"""Types that Horovod does not have, and those in which they travel."""

_GATHERED_PROCESSES = 4
"""Up to so many processes a gather of halves moves no more bytes than a ring of float32."""


class Horovod(Backend):
    """One replica a process.

    Args:
        cluster: Where this process stands.
        compression: Whether gradients travel as float16.
        port: First port of the run, where Horovod's own launcher does not say.

    Raises:
        DistcnnError: If Horovod is missing, or the processes do not find each other.
    """

    name = "horovod"

    def __init__(
        self, cluster: Cluster, compression: Literal["none", "fp16"], port: int | None
    ) -> None:
        self._hvd = import_horovod()
        self._rendezvous = Rendezvous(cluster, port)
        environment = self._rendezvous.open()
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
                "launch/install_horovod.sh --mpi serves mpirun"
            )
        self.rank, self.size = found
        self._compression = compression

    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        """See `Backend.reduce_sum`."""
        as_computed = [_as_computed(tensor) for tensor in tensors]
        halved = sum(t.dtype.size == 2 for t in as_computed) if self._gathers else 0
        if halved:
            return self._gather_and_add(as_computed)
        return self._allreduce(tensors, compressible)

    @property
    def _gathers(self) -> bool:
        few = self.size <= _GATHERED_PROCESSES and self._compression == "none"
        return few and not tf.config.list_logical_devices("GPU")

    def _gather_and_add(self, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
        """Carries the bits of every process to every other, and adds up in float32 by rank.

        Horovod cannot add up bfloat16, but its bits are fewer bytes than a ring of float32 moves.
        """
        bits = [tf.reshape(tf.bitcast(tensor, tf.uint16), [-1]) for tensor in tensors]
        sums = []
        for tensor, gathered in zip(tensors, self._hvd.grouped_allgather(bits), strict=True):
            width = [2] if tensor.dtype.size == 4 else []
            shape = [self.size, *tensor.shape, *width]
            own = tf.unstack(tf.bitcast(tf.reshape(gathered, shape), tensor.dtype))
            sums.append(tf.add_n([tf.cast(part, tf.float32) for part in own]))
        return sums

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
        self._hvd.shutdown()

    def lost_peer(self, error: BaseException) -> str | None:
        """See `Backend.lost_peer`."""
        from horovod.common.exceptions import HorovodInternalError

        # Shapes that differ, NCCL and memory are errors of this rank, whose text it must show.
        signs = ("has been shut down", "Connection", "connection", "timed out", "Broken pipe")
        kinds = (HorovodInternalError, tf.errors.UnknownError, tf.errors.AbortedError)
        if isinstance(error, kinds) and any(sign in str(error) for sign in signs):
            return "another rank"
        return None


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
            f"Horovod cannot be imported ({error}); run launch/install_horovod.sh, or use "
            "--distribute.strategy multi_worker"
        ) from error
    except Exception as error:
        raise DistcnnError(
            f"Horovod does not fit TensorFlow {tf.__version__} ({type(error).__name__}); run "
            "launch/install_horovod.sh, which builds it anew"
        ) from error
    return hvd
