"""Where a run computes: this process's place in the cluster, its share of the host, the backend."""

import logging
import os
import socket

import tensorflow as tf

from distcnn.config import Config
from distcnn.distribute import build_backend, choose_strategy, reporting_lost_peers
from distcnn.distribute.consistency import verify_reduction
from distcnn.distribute.device_placement import bind_cores, gpus_of_process
from distcnn.runtime.cluster import Cluster, find_cluster
from distcnn.runtime.precision import apply_precision, find_hardware, resolve_precision

log = logging.getLogger("distcnn")


class DistributedContext:
    """Takes this process's share of the host, and joins the other processes.

    It must be built before TensorFlow's devices exist, by every process of a run. From then on
    only rank 0 logs.

    Args:
        config: What the run is.
        cluster: Where this process stands; by default what the environment says.
        bound: Whether this process is bound to its cores already, which it may share with others.

    Attributes:
        cluster: Where this process stands.
        hardware: What was found.
        precision: Number formats and compilation on it.
        backend: Over which devices the run is spread; proved to reduce.
        strategy_reason: Why this backend.

    Raises:
        DistcnnError: If the devices cannot be used as asked for, or do not reduce.
    """

    def __init__(
        self, config: Config, cluster: Cluster | None = None, *, bound: bool = False
    ) -> None:
        self.cluster = cluster or find_cluster(os.environ)
        threads = None if bound else bind_cores(self.cluster)
        gpus = tf.config.list_physical_devices("GPU")
        strategy, _ = choose_strategy(config.distribute, self.cluster, gpus=len(gpus))
        own = gpus_of_process(self.cluster, strategy, len(gpus))
        if own is not None:
            tf.config.set_visible_devices([gpus[index] for index in own], "GPU")
        self.hardware = find_hardware()
        self.precision = resolve_precision(config.precision, self.hardware)
        apply_precision(config.precision, self.precision, threads)
        self.backend, self.strategy_reason = build_backend(config.distribute, self.cluster)
        if not self.backend.is_chief:
            log.setLevel(logging.ERROR)
        with reporting_lost_peers(self.backend):
            verify_reduction(self.backend)
        self._warn_of_open_ports()

    def _warn_of_open_ports(self) -> None:
        one_host = self.backend.size > 1 and self.cluster.one_host
        reachable = any(name != "lo" for _, name in socket.if_nameindex())
        if self.backend.name == "multi_worker" and one_host and reachable:
            log.warning(
                "warning: TensorFlow's server for multi_worker listens on all network interfaces; "
                "horovod and mirrored keep to this machine, and docs/troubleshooting.md says how "
                "multi_worker can"
            )
