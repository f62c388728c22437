"""Joins a run: finds this process's place in the cluster and its devices, builds the backend."""

import dataclasses
import logging
import os
import socket
from dataclasses import dataclass

import tensorflow as tf

from distcnn.config import Config, ScriptConfig
from distcnn.distribute.base import Backend, reporting_lost_peers
from distcnn.distribute.consistency import verify_reduction
from distcnn.distribute.device_placement import bind_cores, gpus_of_process
from distcnn.distribute.strategies import choose_strategy, strategy_of
from distcnn.runtime.cluster import Cluster, find_cluster
from distcnn.runtime.nvidia import count_visible_gpus
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
    """This process as a member of a run; created by `join_run`.

    Attributes:
        cluster: The processes of the run, and which of them this one is.
        hardware: GPU and CPU of this process.
        precision: Number formats and compilation, resolved for that hardware.
        backend: Runs the strategy; its reduction has been verified.
        strategy_reason: Why this strategy was chosen.
    """

    cluster: Cluster
    hardware: Hardware
    precision: Precision
    backend: Backend
    strategy_reason: str


def join_run(
    config: Config | ScriptConfig,
    cluster: Cluster | None = None,
    *,
    cores_are_bound: bool = False,
) -> DistributedContext:
    """Claims this process's devices and joins the other processes of the run.

    Every process of a run calls this before anything else initialises TensorFlow's devices.
    Afterwards ranks other than 0 log nothing but errors. With virtual workers, operations have one
    thread unless the configuration says otherwise, and GPUs use deterministic kernels.

    Args:
        config: The configuration of the run.
        cluster: The processes of the run; read from the environment by default.
        cores_are_bound: Whether this process is already bound to its cores.

    Raises:
        DistcnnError: If the devices cannot be used as configured, or do not reduce.
    """
    cluster = cluster or find_cluster(os.environ)
    threads = None if cores_are_bound else bind_cores(cluster)
    gpus = tf.config.list_physical_devices("GPU")
    if not gpus and cluster.local_rank == 0:
        _warn_of_unused_gpus()
    name, reason = choose_strategy(config.distribute, cluster, gpus=len(gpus))
    strategy = strategy_of(name)
    own_gpus = gpus_of_process(cluster, strategy.devices_per_process, len(gpus))
    if own_gpus is not None:
        tf.config.set_visible_devices([gpus[index] for index in own_gpus], "GPU")
    hardware = find_hardware()
    precision = resolve_precision(config.precision, hardware)
    numerics = config.precision
    if config.virtual_workers is not None:  # the number of threads may change the order of sums
        deterministic = numerics.deterministic or hardware.gpu is not None
        threads = numerics.threads or 1
        numerics = dataclasses.replace(numerics, threads=threads, deterministic=deterministic)
    apply_precision(numerics, precision, threads)
    backend = strategy.build(config.distribute, cluster)
    if not backend.is_chief:
        log.setLevel(logging.ERROR)
    with reporting_lost_peers(backend):
        verify_reduction(backend)
    if strategy.listens_publicly and cluster.size > 1 and cluster.one_host:
        _warn_of_public_port(name)
    return DistributedContext(cluster, hardware, precision, backend, reason)


def _warn_of_unused_gpus() -> None:
    """Warns if there are GPUs that TensorFlow does not find, and the user has not hidden them."""
    count = count_visible_gpus()
    if count:
        log.warning(
            "warning: nvidia-smi finds %d GPU%s, TensorFlow none: this run computes on the CPU; "
            "see python -m distcnn.doctor, or set CUDA_VISIBLE_DEVICES= if that is intended",
            count,
            "s" * (count > 1),
        )


def _warn_of_public_port(strategy: str) -> None:
    if any(name != "lo" for _, name in socket.if_nameindex()):
        log.warning(
            "warning: TensorFlow's server for %s listens on all network interfaces; use horovod or "
            "mirrored, or see docs/troubleshooting.md for how to keep %s on this machine",
            strategy,
            strategy,
        )
