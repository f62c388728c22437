"""One device without a strategy, and TensorFlow's own strategies for several."""

import contextlib
import functools
import re
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.keras_internals import skip_gradient_reduction


class OneDevice(Backend):
    """The first GPU, or the CPU."""

    name = "one_device"

    def sum(self, values: np.ndarray) -> np.ndarray:
        """See `Backend.sum`."""
        return np.asarray(values, np.float64)


class _Strategy(Backend):
    """What `tf.distribute`'s strategies share.

    Keras 3's own `fit` and optimizers are not made for them in every case, so the step does its
    part in replica context: it reduces first, then the optimizer applies what is reduced.
    """

    def __init__(self, strategy: tf.distribute.Strategy) -> None:
        self._strategy = strategy
        self.local_replicas = len(strategy.extended.worker_devices)

    def scope(self) -> contextlib.AbstractContextManager[Any]:
        """See `Backend.scope`."""
        return self._strategy.scope()

    def disable_reduction(self, optimizer: Any) -> None:
        """Keeps Keras from adding up once more what the step has reduced."""
        skip_gradient_reduction(optimizer)

    def iterate(self, dataset: tf.data.Dataset) -> Any:
        """See `Backend.iterate`."""
        # Endless as far as TensorFlow knows: else every step asks all workers whether they go on.
        endless = dataset.apply(
            tf.data.experimental.assert_cardinality(tf.data.INFINITE_CARDINALITY)
        )
        return iter(self._strategy.distribute_datasets_from_function(lambda _: endless))

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """See `Backend.run`."""
        results = self._strategy.run(function, args=arguments)
        return list(self._strategy.experimental_local_results(results))

    def replica_id(self) -> Any:
        """See `Backend.replica_id`."""
        return tf.distribute.get_replica_context().replica_id_in_sync_group

    def reduce_sum(self, tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        """See `Backend.reduce_sum`."""
        # A tensor without a device, such as a constant, cannot be reduced.
        tensors = [tf.identity(tensor) for tensor in tensors]
        context = tf.distribute.get_replica_context()
        return list(context.all_reduce(tf.distribute.ReduceOp.SUM, tensors))

    def local_values(self, variable: Any) -> list[np.ndarray]:
        """See `Backend.local_values`."""
        inner = variable.value if isinstance(variable, keras.Variable) else variable
        parts = getattr(inner, "values", None)  # one variable a replica
        return [np.asarray(part) for part in parts] if parts else [np.asarray(inner)]


class Mirrored(_Strategy):
    """All devices of this process."""

    name = "mirrored"

    def __init__(self, devices: int | None) -> None:
        super().__init__(_mirrored(tuple(_local_devices(devices))))

    def sum(self, values: np.ndarray) -> np.ndarray:
        """See `Backend.sum`."""
        return np.asarray(values, np.float64)


class MultiWorker(_Strategy):
    """All devices of several processes, by TensorFlow's collectives.

    TensorFlow's server listens on all interfaces, whatever address it is given.
    """

    name = "multi_worker"

    def __init__(self, cluster: Cluster, addresses: Sequence[str], devices: int | None) -> None:
        gpus = sum(device.startswith("GPU") for device in _local_devices(devices))
        if gpus == 0 and (devices or 1) > 1:
            raise UsageError(
                f"distribute.devices is {devices}, but multi_worker has one CPU device a process; "
                "start more processes"
            )
        try:
            strategy = _multi_worker(tuple(addresses), cluster.rank, gpus)
        except tf.errors.OpError as error:
            raise DistcnnError(
                f"rank {cluster.rank} cannot join the others at {', '.join(addresses)}: "
                f"{str(error).splitlines()[0]}; are the hosts and ports reachable, and free?"
            ) from error
        super().__init__(strategy)
        self.rank, self.size = cluster.rank, cluster.size
        self._sum = tf.function(
            self._sum_in_graph, input_signature=[tf.TensorSpec([None], tf.float64)]
        )

    def sum(self, values: np.ndarray) -> np.ndarray:
        """See `Backend.sum`."""
        values = np.asarray(values, np.float64)
        if self.size == 1:
            return values
        return self._sum(values.ravel()).numpy().reshape(values.shape)

    def lost_peer(self, error: BaseException) -> str | None:
        """See `Backend.lost_peer`."""
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
            # One replica speaks for its process.
            speaks = tf.equal(self.replica_id() % self.local_replicas, 0)
            return self.reduce_sum([values * tf.cast(speaks, tf.float64)])[0]

        return self.run(in_replica, values)[0]


# TensorFlow numbers the collectives of each strategy from the same start, and so mixes up those of
# two strategies; and a process can join a cluster once. Hence one strategy a process.


@functools.cache
def _mirrored(devices: tuple[str, ...]) -> tf.distribute.Strategy:
    return tf.distribute.MirroredStrategy(devices)


@functools.cache
def _multi_worker(addresses: tuple[str, ...], rank: int, gpus: int) -> tf.distribute.Strategy:
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(addresses)}),
        task_type="worker",
        task_id=rank,
        num_accelerators={"GPU": gpus},  # left out, TensorFlow would take the CPU
        rpc_layer="grpc",
    )
    return tf.distribute.MultiWorkerMirroredStrategy(cluster_resolver=resolver)


def _local_devices(count: int | None) -> list[str]:
    """Makes the devices of this process: its GPUs, or `count` logical CPU devices.

    Raises:
        UsageError: If there are fewer GPUs.
        DistcnnError: If TensorFlow already runs with another number of devices.
    """
    gpus = tf.config.get_visible_devices("GPU")
    if gpus:
        if count is not None and count > len(gpus):
            raise UsageError(f"distribute.devices is {count}, but there are {len(gpus)} GPUs")
        chosen = gpus[:count]
        if len(chosen) < len(gpus):
            tf.config.set_visible_devices(chosen, "GPU")
        return [f"GPU:{index}" for index in range(len(chosen))]
    count = count or 1
    cpu = tf.config.list_physical_devices("CPU")[0]
    present = len(tf.config.get_logical_device_configuration(cpu) or [None])
    if present != count:
        try:
            parts = [tf.config.LogicalDeviceConfiguration()] * count
            tf.config.set_logical_device_configuration(cpu, parts)
        except RuntimeError:
            raise DistcnnError(
                f"distribute.devices is {count}, but TensorFlow already runs in this process with "
                f"{present}; create the Trainer before anything else uses TensorFlow"
            ) from None
    return [f"CPU:{index}" for index in range(count)]
