"""The table of distribution strategies, and everything that depends on the strategy.

To add one, write its backend (see `distcnn.distribute.base.Backend`) and add an entry to
`STRATEGIES`. Nothing outside this module compares the name of a strategy with a string, and nothing
here imports TensorFlow before a backend is built.
"""

import importlib.util
from collections import ChainMap
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from distcnn.config import DistributeConfig
from distcnn.config.lookup import look_up, require_known
from distcnn.distribute import launching
from distcnn.errors import UsageError
from distcnn.runtime.cluster import Cluster, ClusterError

if TYPE_CHECKING:
    from distcnn.distribute.base import Backend
    from distcnn.runtime.finding import Finding


@dataclass(frozen=True)
class Resources:
    """The resources by which `auto` chooses a strategy.

    Attributes:
        cluster: The processes that were started.
        devices: Number of devices that this process would use: as configured, or all GPUs it sees.
        gpus: Number of GPUs that this process sees.
        has_horovod: Whether Horovod is installed.
    """

    cluster: Cluster
    devices: int
    gpus: int
    has_horovod: bool

    @property
    def started(self) -> str:
        """What started how many processes, for messages."""
        return f"{self.cluster.scheme} started {self.cluster.size} processes"


def _never_chosen(resources: Resources) -> str | None:
    return None


def _no_checks() -> "Iterator[Finding]":
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to spread a run over devices.

    Attributes:
        build: Builds the backend; the first thing that may initialise TensorFlow's devices.
        devices_per_process: `one`, or `all` that the process sees (its part of them if several
            processes share the host).
        joins_processes: Whether several processes can train one model. If not, one process holds
            all devices.
        max_devices: Largest number of devices per process, or None for no limit.
        more_devices: What to do to train on more devices than that; ends an error message.
        auto_reason: Returns why `auto` chooses this strategy, or None if it does not.
        launch: Returns the command line and environment of each process to start on this host for a
            number of replicas.
        check: Yields the doctor's findings about the software that the strategy needs.
        can_compress: Whether gradients can be sent in half precision.
        has_shared_memory: Whether processes of one host may reduce through shared memory.
        listens_publicly: Whether it opens a port on all network interfaces.
    """

    build: Callable[[DistributeConfig, Cluster], "Backend"]
    devices_per_process: Literal["one", "all"]
    joins_processes: bool
    max_devices: int | None = None
    more_devices: str = ""
    auto_reason: Callable[[Resources], str | None] = _never_chosen
    launch: launching.Launch = launching.one_process
    check: Callable[[], Iterator["Finding"]] = _no_checks
    can_compress: bool = False
    has_shared_memory: bool = False
    listens_publicly: bool = False

    @property
    def trains_several(self) -> bool:
        """Whether it can train on more than one device."""
        return self.joins_processes or self.max_devices is None


def _build_one_device(config: DistributeConfig, cluster: Cluster) -> "Backend":
    from distcnn.distribute.tensorflow import OneDevice

    return OneDevice()


def _build_mirrored(config: DistributeConfig, cluster: Cluster) -> "Backend":
    from distcnn.distribute.tensorflow import Mirrored

    return Mirrored(config.devices)


def _build_multi_worker(config: DistributeConfig, cluster: Cluster) -> "Backend":
    from distcnn.distribute.tensorflow import MultiWorker

    addresses = cluster.worker_addresses(config.port)
    return MultiWorker(
        cluster,
        addresses,
        config.devices,
        bucket_bytes=config.bucket_bytes,
        factors=config.factors == "auto",
    )


def _build_horovod(config: DistributeConfig, cluster: Cluster) -> "Backend":
    from distcnn.distribute.horovod import Horovod

    return Horovod(
        cluster,
        config.compression,
        config.port,
        shared_memory=config.shared_memory == "auto",
        bucket_bytes=config.bucket_bytes,
        factors=config.factors == "auto",
    )


def _check_horovod() -> "Iterator[Finding]":
    from distcnn.distribute.horovod_check import check_horovod

    return check_horovod()


def _reason_for_horovod(resources: Resources) -> str | None:
    # TF_CONFIG describes a cluster for TensorFlow's own strategies.
    if resources.cluster.size == 1 or resources.cluster.scheme == "tf_config":
        return None
    if not resources.has_horovod and resources.cluster.scheme == "horovod":
        raise ClusterError(
            f"{resources.started}, but Horovod is not installed in this environment; run "
            "distcnn install-horovod"
        )
    return resources.started if resources.has_horovod else None


def _reason_for_multi_worker(resources: Resources) -> str | None:
    return resources.started if resources.cluster.size > 1 else None


def _reason_for_mirrored(resources: Resources) -> str | None:
    return f"there are {resources.devices} devices" if resources.devices > 1 else None


def _reason_for_one_device(resources: Resources) -> str | None:
    return "there is one device" if resources.gpus else "there is no GPU"


STRATEGIES: dict[str, Strategy] = {
    "horovod": Strategy(
        build=_build_horovod,
        devices_per_process="one",
        joins_processes=True,
        max_devices=1,
        more_devices="horovod uses one device per process; start more processes, for example with "
        "horovodrun -np N",
        auto_reason=_reason_for_horovod,
        launch=launching.horovodrun,
        check=_check_horovod,
        can_compress=True,
        has_shared_memory=True,
    ),
    "multi_worker": Strategy(
        build=_build_multi_worker,
        devices_per_process="all",
        joins_processes=True,
        auto_reason=_reason_for_multi_worker,
        launch=launching.tf_config,
        listens_publicly=True,
    ),
    "mirrored": Strategy(
        build=_build_mirrored,
        devices_per_process="all",
        joins_processes=False,
        auto_reason=_reason_for_mirrored,
    ),
    "one_device": Strategy(
        build=_build_one_device,
        devices_per_process="one",
        joins_processes=False,
        max_devices=1,
        more_devices="distribute.strategy one_device supports a single device; use mirrored",
        auto_reason=_reason_for_one_device,
    ),
}
"""The strategies by their name in the configuration; `auto` tries them in this order.

The last one fits every single process. Entries added from outside are therefore tried before all of
these.
"""

_BUILT_IN = tuple(STRATEGIES)

AUTO = "auto"
"""The name that stands for the first suitable strategy."""

STRATEGY_NAMES: Mapping[str, object] = ChainMap({AUTO: None}, STRATEGIES)  # type: ignore[arg-type]
"""What `distribute.strategy` may be."""


def strategy_of(name: str) -> Strategy:
    """Returns a strategy by its name.

    Raises:
        UsageError: If there is no strategy of that name.
    """
    strategy: Strategy = look_up("distribute.strategy", name, STRATEGIES)
    return strategy


def has_shared_memory(name: str) -> bool:
    """Returns whether a strategy may reduce through shared memory; False for an unknown name."""
    return name in STRATEGIES and STRATEGIES[name].has_shared_memory


def default_strategy(workers: int) -> str:
    """Returns the name of the first strategy of the table for one worker, or for several."""
    return next(n for n, s in STRATEGIES.items() if s.trains_several == (workers > 1))


def require_supported(config: DistributeConfig) -> None:
    """Checks that the strategy supports the other settings of its section.

    Raises:
        UsageError: If the strategy is unknown, or does not support a setting.
    """
    require_known("distribute.strategy", config.strategy, STRATEGY_NAMES)
    if config.strategy == AUTO:
        return
    strategy = STRATEGIES[config.strategy]
    if config.compression != "none" and not strategy.can_compress:
        able = " and ".join(name for name, other in STRATEGIES.items() if other.can_compress)
        raise UsageError(
            f"distribute.compression is {config.compression}, which distribute.strategy "
            f"{config.strategy} does not support; only {able} does"
        )
    if strategy.max_devices is not None and (config.devices or 1) > strategy.max_devices:
        raise UsageError(f"distribute.devices is {config.devices}, but {strategy.more_devices}")


def choose_strategy(
    config: DistributeConfig, cluster: Cluster, *, gpus: int, has_horovod: bool | None = None
) -> tuple[str, str]:
    """Resolves the strategy `auto`; rejects a strategy that cannot join the started processes.

    Args:
        config: The distribute section of a run.
        cluster: The processes that were started, and which of them this one is.
        gpus: Number of GPUs that this process sees.
        has_horovod: Whether Horovod is installed; detected by default.

    Returns:
        The name of the strategy, and the reason for it.

    Raises:
        UsageError: If the configured strategy cannot train one model in the started processes.
        ClusterError: If Horovod started the processes, but is not installed here.
    """
    require_supported(config)
    if has_horovod is None:
        has_horovod = importlib.util.find_spec("horovod") is not None
    resources = Resources(cluster, config.devices or gpus, gpus, has_horovod)
    if config.strategy != AUTO:
        if cluster.size > 1 and not STRATEGIES[config.strategy].joins_processes:
            able = " or ".join(n for n, other in STRATEGIES.items() if other.joins_processes)
            raise UsageError(
                f"distribute.strategy is {config.strategy}, but {resources.started}, which would "
                f"train {cluster.size} separate models; use {able}"
            )
        return config.strategy, "set in the configuration"
    added = [name for name in STRATEGIES if name not in _BUILT_IN]
    for name in (*added, *_BUILT_IN):
        reason = STRATEGIES[name].auto_reason(resources)
        if reason is not None:
            return name, reason
    raise AssertionError("the last built-in strategy must accept a single process")
