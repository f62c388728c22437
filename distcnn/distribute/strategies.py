"""From what was asked for and what is there to a backend."""

import importlib.util

import tensorflow as tf

from distcnn.config import DistributeConfig
from distcnn.distribute.base import Backend
from distcnn.distribute.horovod import Horovod
from distcnn.distribute.tensorflow import Mirrored, MultiWorker, OneDevice
from distcnn.errors import UsageError
from distcnn.runtime.cluster import Cluster, ClusterError


def choose_strategy(
    config: DistributeConfig, cluster: Cluster, *, gpus: int, has_horovod: bool | None = None
) -> tuple[str, str]:
    """Resolves the strategy `auto`, and refuses what would not train together.

    Args:
        config: What was asked for.
        cluster: Where this process stands.
        gpus: GPUs that this process sees.
        has_horovod: Whether Horovod is installed; by default it is looked for.

    Returns:
        The name of the strategy, and the reason.

    Raises:
        UsageError: If the strategy asked for cannot serve the processes that were started.
    """
    strategy, asked = config.strategy, config.strategy != "auto"
    started = f"{cluster.scheme} started {cluster.size} processes"
    if strategy in ("one_device", "mirrored") and cluster.size > 1:
        raise UsageError(
            f"distribute.strategy is {strategy}, but {started}, which would train {cluster.size} "
            "separate models; use horovod or multi_worker"
        )
    if strategy == "one_device" and (config.devices or 1) > 1:
        raise UsageError(
            f"distribute.devices is {config.devices}, but distribute.strategy one_device has one; "
            "use mirrored"
        )
    if strategy == "horovod" and (config.devices or 1) > 1:
        raise UsageError(
            f"distribute.devices is {config.devices}, but Horovod has one device a process; start "
            "more processes, as by horovodrun -np N"
        )
    if asked:
        return strategy, "asked for"
    if has_horovod is None:
        has_horovod = importlib.util.find_spec("horovod") is not None
    if cluster.size > 1:
        if cluster.scheme != "tf_config" and has_horovod:
            return "horovod", started
        if cluster.scheme == "horovod":
            raise ClusterError(f"{started}, but Horovod is not installed in this environment")
        return "multi_worker", started
    if (config.devices or gpus) > 1:
        return "mirrored", f"there are {config.devices or gpus} devices"
    return "one_device", "there is one device" if gpus else "there is no GPU"


def build_backend(config: DistributeConfig, cluster: Cluster) -> tuple[Backend, str]:
    """Builds the backend of a run; the first thing that may start TensorFlow's devices.

    Returns:
        The backend, and why it was chosen.

    Raises:
        DistcnnError: If it cannot be built, or does not fit the processes that were started.
    """
    name, reason = choose_strategy(config, cluster, gpus=len(tf.config.get_visible_devices("GPU")))
    if name == "horovod":
        shared_memory = config.shared_memory == "auto"
        return Horovod(
            cluster, config.compression, config.port, shared_memory=shared_memory
        ), reason
    if name == "multi_worker":
        addresses = cluster.worker_addresses(config.port)
        return MultiWorker(cluster, addresses, config.devices), reason
    if name == "mirrored":
        return Mirrored(config.devices), reason
    return OneDevice(), reason
