"""A single device, and TensorFlow's own strategies for several."""

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.distribute.alike import are_alike
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.collective_gather import CollectiveGather
from distcnn.distribute.overlap import spare_a_thread
from distcnn.distribute.packing import (
    SHORT_MESSAGE_BYTES,
    as_message,
    from_bits,
    packed_sum,
    sum_over_processes,
    to_bits,
    undo_upcast,
)
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.keras_internals import skip_gradient_reduction


class OneDevice(Backend):
    """The first GPU, or the CPU."""

    name = "one_device"

    @override
    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64)


class _Strategy(Backend):
    """What the strategies of `tf.distribute` have in common.

    Keras 3's own `fit` and optimizers do not support them in every case, so the step works in
    replica context: it reduces first, then the optimizer applies the reduced gradients.
    """

    adds_up_metrics = True

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.local_replicas = len(strategy.extended.worker_devices)

    @override
    def scope(self) -> contextlib.AbstractContextManager[Any]:
        return self._strategy.scope()

    @override
    def disable_reduction(self, optimizer: Any) -> None:
        skip_gradient_reduction(optimizer)

    @override
    def iterate(self, dataset: tf.data.Dataset) -> Any:
        # Declared infinite: otherwise every step asks all workers whether they have data left.
        infinite = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
        return iter(self._strategy.distribute_datasets_from_function(lambda _: infinite))

    @override
    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        results = self._strategy.run(function, args=arguments)
        return list(self._strategy.experimental_local_results(results))

    @override
    def replica_id(self) -> Any:
        return tf.distribute.get_replica_context().replica_id_in_sync_group

    @override
    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        # A tensor without a device, such as a constant, cannot be reduced.
        sums = [tf.identity(self._to_wire(t, i < compressible)) for i, t in enumerate(tensors)]
        context = tf.distribute.get_replica_context()
        for dtype in dict.fromkeys(tensor.dtype for tensor in sums):  # a group needs a single type
            indices = [index for index, tensor in enumerate(sums) if tensor.dtype == dtype]
            group = [sums[index] for index in indices]
            totals = context.all_reduce(tf.distribute.ReduceOp.SUM, group)
            for index, total in zip(indices, totals, strict=True):
                sums[index] = total
        return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]

    def _to_wire(self, tensor: tf.Tensor, compressible: bool) -> tf.Tensor:
        dtype = self.wire_type(tensor, compressible=compressible, replicas=self.replicas)
        return tensor if tensor.dtype == dtype else undo_upcast(tensor)

    @override
    def combine(
        self,
        tensors: Sequence[Sequence[tf.Tensor]],
        add: Callable[[Sequence[Sequence[tf.Tensor]]], tf.Tensor],
    ) -> list[tf.Tensor]:
        gathered = self.gather_rows([tf.stack(group)[None] for group in tensors], equal=True)
        shapes = [(self.replicas, len(group), *group[0].shape) for group in tensors]
        return [
            add([tf.unstack(own) for own in tf.unstack(tf.reshape(joined, shape))])
            for joined, shape in zip(gathered, shapes, strict=True)
        ]

    @override
    def gather_rows(self, tensors: Sequence[tf.Tensor], *, equal: bool = False) -> list[tf.Tensor]:
        return [_all_gather(tensor) for tensor in tensors]

    @override
    def local_values(self, variable: Any) -> list[np.ndarray]:
        inner = variable.value if isinstance(variable, keras.Variable) else variable
        parts = getattr(inner, "values", None)  # one variable per replica
        return [np.asarray(part) for part in parts] if parts else [np.asarray(inner)]


def _all_gather(tensor: tf.Tensor) -> tf.Tensor:
    """Joins a tensor of each replica; TensorFlow gathers no bfloat16, but its bits."""
    if tensor.dtype == tf.bfloat16:
        return tf.bitcast(_all_gather(tf.bitcast(tensor, tf.float16)), tf.bfloat16)
    return tf.distribute.get_replica_context().all_gather(tf.identity(tensor), 0)


class Mirrored(_Strategy):
    """All devices of this process."""

    name = "mirrored"

    def __init__(self, devices: int | None) -> None:
        super().__init__(_mirrored(tuple(_local_devices(devices))))

    @override
    def sum(self, values: np.ndarray) -> np.ndarray:
        return np.asarray(values, np.float64)


class MultiWorker(_Strategy):
    """All devices of several processes, connected by TensorFlow's collectives.

    TensorFlow's server listens on all network interfaces, whatever address it is given.
    """

    name = "multi_worker"

    def __init__(
        self,
        cluster: Cluster,
        addresses: Sequence[str],
        devices: int | None,
        *,
        bucket_bytes: int = 0,
        factors: bool = True,
    ) -> None:
        gpus = sum(device.startswith("GPU") for device in _local_devices(devices))
        if gpus == 0 and (devices or 1) > 1:
            raise UsageError(
                f"distribute.devices is {devices}, but multi_worker uses one CPU device per "
                "process; start more processes"
            )
        if bucket_bytes and cluster.size > 1:
            spare_a_thread()
        try:
            strategy = _multi_worker(tuple(addresses), cluster.rank, gpus)
        except tf.errors.OpError as error:
            raise DistcnnError(
                f"rank {cluster.rank} cannot join the cluster {', '.join(addresses)}: "
                f"{str(error).splitlines()[0]}; are the hosts reachable, and the ports free?"
            ) from error
        super().__init__(strategy)
        self.rank, self.size = cluster.rank, cluster.size
        self.bucket_bytes = bucket_bytes if self.replicas > 1 else 0
        self._sum = tf.function(
            self._sum_in_graph, input_signature=[tf.TensorSpec([None], tf.float64)]
        )
        self._gather = CollectiveGather(self.size) if self.size > 1 and not gpus else None
        with reporting_lost_peers(self):
            alike = self.size > 1 and are_alike(self)
        self.sends_factors = alike and factors and not gpus

    @override
    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        if not self._gather or self.size > 2:
            return super().reduce_sum(tensors, compressible=compressible)
        wire = [self._to_wire(t, i < compressible) for i, t in enumerate(tensors)]
        if not _is_short(wire):
            return super().reduce_sum(tensors, compressible=compressible)
        # One message each way: a ring takes two rounds, and two for every further type.
        sum_of_both = functools.partial(_sum_of_both, self._gather)
        sums = packed_sum(wire, sum_of_both, self.reduce_sum)
        return [tf.cast(total, t.dtype) for total, t in zip(sums, tensors, strict=True)]

    @override
    def gather_rows(self, tensors: Sequence[tf.Tensor], *, equal: bool = False) -> list[tf.Tensor]:
        if not self._gather or not equal:
            return super().gather_rows(tensors, equal=equal)
        return [_join(self._gather, tensor) for tensor in tensors]

    @override
    def wire_type(self, tensor: tf.Tensor, *, compressible: bool, replicas: int) -> tf.DType:
        # A sum of two is rounded once, as a gradient that one device computes. More would be
        # rounded by each process on the way.
        return undo_upcast(tensor).dtype if compressible and replicas == 2 else tensor.dtype

    @override
    def sum(self, values: np.ndarray) -> np.ndarray:
        values = np.asarray(values, np.float64)
        if self.size == 1:
            return values
        return self._sum(values.ravel()).numpy().reshape(values.shape)

    @override
    def lost_peer(self, error: BaseException) -> str | None:
        if not isinstance(error, tf.errors.OpError):
            return None
        signs = ("Collective ops is aborted", "unhealthy", "Connection reset", "remote target")
        lost = (tf.errors.UnavailableError, tf.errors.AbortedError)
        if not isinstance(error, lost) and not any(sign in str(error) for sign in signs):
            return None
        named = {int(rank) for rank in re.findall(r"/task:(\d+)", str(error))} - {self.rank}
        return f"rank {min(named)}" if len(named) == 1 else "another rank"

    def _sum_in_graph(self, values: tf.Tensor) -> tf.Tensor:
        def in_replica(values: tf.Tensor) -> tf.Tensor:
            # Only the first replica of each process contributes its values.
            is_first = tf.equal(self.replica_id() % self.local_replicas, 0)
            return self.reduce_sum([values * tf.cast(is_first, tf.float64)])[0]

        return self.run(in_replica, values)[0]


def _is_short(tensors: Sequence[tf.Tensor]) -> bool:
    """Returns whether the sizes of tensors are known, and their message is short."""
    if not all(t.shape.is_fully_defined() and t.dtype.size > 1 for t in tensors):
        return False
    return sum(t.shape.num_elements() * t.dtype.size for t in tensors) <= SHORT_MESSAGE_BYTES


def _sum_of_both(gather: CollectiveGather, tensors: list[tf.Tensor]) -> list[tf.Tensor]:
    """Sums tensors of two processes, which send each other all of them in one message."""
    sent, read = as_message(tensors)
    return sum_over_processes([read(message) for message in tf.split(gather(sent), 2)])


def _join(gather: CollectiveGather, tensor: tf.Tensor) -> tf.Tensor:
    """Joins tensors of the same static shape along their first axis."""
    joined = from_bits(gather(to_bits(tensor)), tensor.dtype)
    return tf.reshape(joined, [-1, *tensor.shape[1:]])


# TensorFlow numbers the collectives of each strategy from the same start, and so confuses those of
# two strategies; and a process can join a cluster only once. Hence one strategy per process.


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker(addresses: tuple[str, ...], rank: int, gpus: int) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=rank,
        num_accelerators={"GPU": gpus},  # without it, TensorFlow would use the CPU
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def _local_devices(count: int | None) -> list[str]:
    """Sets up the devices of this process: its GPUs, or `count` logical CPU devices.

    Raises:
        UsageError: If there are fewer GPUs.
        DistcnnError: If TensorFlow already runs with another number of devices.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise UsageError(
                f"distribute.devices is {count}, but this process sees {len(gpus)} GPUs; lower it"
            )
        chosen = gpus[:count]
        if len(chosen) < len(gpus):
            tf.config.set_visible_devices(chosen, "GPU")
        return [f"GPU:{index}" for index in range(len(chosen))]
    count = count or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    current = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if current != count:
        try:
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            raise DistcnnError(
                f"distribute.devices is {count}, but TensorFlow already runs in this process with "
                f"{current}; create the Trainer before anything else uses TensorFlow"
            ) from None
    return [f"CPU:{index}" for index in range(count)]
