"""Assigns each process of a host its own GPUs, or its own CPU cores."""

import os
from typing import Literal

from distcnn.errors import UsageError
from distcnn.runtime.cluster import Cluster


def bind_cores(cluster: Cluster) -> int | None:
    """Binds this process to its part of the host's cores, before TensorFlow starts its threads.

    Processes that a launcher (Slurm, Open MPI) has already bound keep their cores.

    Args:
        cluster: The processes of the run, and which of them this one is.

    Returns:
        The number of threads that TensorFlow should use instead of its default: 1 if there are more
        processes than cores, else None.
    """
    if cluster.local_size == 1:
        return None
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) * cluster.local_size <= (os.cpu_count() or 1):
        return None
    if len(cores) < cluster.local_size:
        return 1
    first = cluster.local_rank * len(cores) // cluster.local_size
    last = (cluster.local_rank + 1) * len(cores) // cluster.local_size
    os.sched_setaffinity(0, cores[first:last])
    return None


def gpus_of_process(
    cluster: Cluster, devices_per_process: Literal["one", "all"], gpus: int
) -> list[int] | None:
    """Returns the indices of the GPUs that this process uses, or None for all that it sees.

    Args:
        cluster: The processes of the run, and which of them this one is.
        devices_per_process: `one`, or `all` GPUs in this process's part of the host.
        gpus: Number of GPUs that this process sees. A single one may be its own: Slurm can show
            each task only its own GPU.

    Raises:
        UsageError: If processes would share a GPU, which NCCL refuses.
    """
    if gpus == 0 or (cluster.local_size == 1 and devices_per_process == "all"):
        return None
    if cluster.local_size == 1 or gpus == 1:
        return [0]
    per_process = gpus // cluster.local_size
    if per_process == 0:
        raise UsageError(
            f"there are {cluster.local_size} processes on this host, but only {gpus} GPUs; start "
            "one process per GPU, or set CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    if devices_per_process == "one":
        return [cluster.local_rank]
    first = cluster.local_rank * per_process
    return list(range(first, first + per_process))
