"""Joining a run: this process's place in the cluster, its devices, and the backend they form."""

import logging
import os
import socket
from dataclasses import dataclass

import tensorflow as tf

from distcnn.config import Config
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import verify_reduction
from distcnn.distribute.device_placement import bind_cores, gpus_of_process
from distcnn.distribute.strategies import choose_strategy, strategy_of
from distcnn.runtime.cluster import Cluster, find_cluster
from distcnn.runtime.precision import (
    Hardware,
    Precision,
    apply_precision,
    find_hardware,
    resolve_precision,
)

log = logging.getLogger("distcnn")


@dataclass(frozen=True)
class DistributedContext:
    """This process as a member of a run; see `join_run`.

    Attributes:
        cluster: The processes of the run, and which of them this one is.
        hardware: GPU and CPU of this process.
        precision: Number formats and compilation, resolved for that hardware.
        backend: The devices that the run is spread over; its reduction has been verified.
        strategy_reason: Why this strategy.
    """

    cluster: Cluster
    hardware: Hardware
    precision: Precision
    backend: Backend
    strategy_reason: str


def join_run(
    config: Config, cluster: Cluster | None = None, *, cores_are_bound: bool = False
) -> DistributedContext:
    """Takes this process's part of the host and joins the other processes of the run.

    Every process of a run calls it, before anything else initialises TensorFlow's devices. From
    then on only rank 0 logs.

    Args:
        config: The run.
        cluster: The processes of the run; by default as the environment describes them.
        cores_are_bound: Whether this process is bound to its cores already.

    Raises:
        DistcnnError: If the devices cannot be used as asked for, or do not reduce.
    """
    cluster = cluster or find_cluster(os.environ)
    threads = None if cores_are_bound else bind_cores(cluster)
    gpus = tf.config.list_physical_devices("GPU")
    name, reason = choose_strategy(config.distribute, cluster, gpus=len(gpus))
    strategy = strategy_of(name)
    own_gpus = gpus_of_process(cluster, strategy.devices_per_process, len(gpus))
    if own_gpus is not None:
        tf.config.set_visible_devices([gpus[index] for index in own_gpus], "GPU")
    hardware = find_hardware()
    precision = resolve_precision(config.precision, hardware)
    apply_precision(config.precision, precision, threads)
    backend = strategy.build(config.distribute, cluster)
    if not backend.is_chief:
        log.setLevel(logging.ERROR)
    with reporting_lost_peers(backend):
        verify_reduction(backend)
    if strategy.listens_publicly and cluster.size > 1 and cluster.one_host:
        _warn_of_public_port(name)
    return DistributedContext(cluster, hardware, precision, backend, reason)


def _warn_of_public_port(strategy: str) -> None:
    if any(name != "lo" for _, name in socket.if_nameindex()):
        log.warning(
            "warning: TensorFlow's server for %s listens on all network interfaces; horovod and "
            "mirrored stay on this machine, and docs/troubleshooting.md explains how %s can",
            strategy,
            strategy,
        )
