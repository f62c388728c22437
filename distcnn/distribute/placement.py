"""Gives each process of a host its own GPU, or its share of the cores."""

import os

from distcnn.cluster import Cluster


def share_cores(cluster: Cluster) -> int | None:
    """Binds this process to its share of the host's cores, before TensorFlow's threads start.

    Processes that a launcher has bound already (Slurm, Open MPI) keep what they have.

    Args:
        cluster: Where this process stands.

    Returns:
        Threads that TensorFlow should use where that is not what it would do by itself: 1 if there
        are more processes than cores, else None.
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


def visible_gpus(cluster: Cluster, strategy: str, gpus: int) -> list[int] | None:
    """Returns which of the host's GPUs this process takes, or None for all that it sees.

    Args:
        cluster: Where this process stands.
        strategy: Strategy asked for; Horovod takes one GPU even in a single process.
        gpus: GPUs that it sees.
    """
    if gpus == 0 or (cluster.local_size == 1 and strategy not in ("horovod", "one_device")):
        return None
    if cluster.local_size == 1 or gpus == 1:
        return [0]
    share = gpus // cluster.local_size
    if share == 0 or strategy != "multi_worker":
        return [cluster.local_rank % gpus]
    return list(range(cluster.local_rank * share, (cluster.local_rank + 1) * share))
