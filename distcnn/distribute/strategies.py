"""The table of distribution strategies, and everything that depends on the strategy.

To add one, write its backend (see `distcnn.distribute.base.Backend`) and add a line to
`STRATEGIES`. Nothing outside this module compares the name of a strategy with a string, and nothing
here imports TensorFlow until a backend is built.
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
from distcnn.runtime.finding import Finding

if TYPE_CHECKING:
    from distcnn.distribute.base import Backend


@dataclass(frozen=True)
class Surroundings:
    """What `auto` depends on.

    Attributes:
        cluster: The processes that were started.
        devices: Devices that this process would use: as asked for, else the GPUs it sees.
        gpus: GPUs that this process sees.
        has_horovod: Whether Horovod is installed.
    """

    cluster: Cluster
    devices: int
    gpus: int
    has_horovod: bool

    @property
    def started(self) -> str:
        """Who started the processes, for messages."""
        return f"{self.cluster.scheme} started {self.cluster.size} processes"


def _never(surroundings: Surroundings) -> str | None:
    return None


def _no_checks() -> Iterator[Finding]:
    return iter(())


@dataclass(frozen=True, kw_only=True)
class Strategy:
    """One way to spread a run over devices.

    Attributes:
        build: Builds the backend; the first thing that may initialise TensorFlow's devices.
        devices_per_process: `one`, or `all` that this process sees (its part of them, if several
            processes share the host).
        joins_processes: Whether several processes train one model. If not, several devices belong
            to one process.
        max_devices: Most devices of a process, or None.
        more_devices: What to do to train on more devices than that.
        fits: Returns why `auto` chooses this strategy, or None if it does not.
        launch: Returns the command line and environment of each process that has to be started on
            this host for a number of replicas.
        check: Yields what the doctor finds about the software the strategy needs.
        can_compress: Whether gradients can be sent in half precision.
        has_shared_memory: Whether processes of one host may reduce through shared memory.
        listens_publicly: Whether it opens a port on all network interfaces.
    """

    build: Callable[[DistributeConfig, Cluster], "Backend"]
    devices_per_process: Literal["one", "all"]
    joins_processes: bool
    max_devices: int | None = None
    more_devices: str = ""
    fits: Callable[[Surroundings], str | None] = _never
    launch: launching.Launcher = launching.one_process
    check: Callable[[], Iterator[Finding]] = _no_checks
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

    return MultiWorker(cluster, cluster.worker_addresses(config.port), config.devices)


def _build_horovod(config: DistributeConfig, cluster: Cluster) -> "Backend":
    from distcnn.distribute.horovod import Horovod

    return Horovod(
        cluster,
        config.compression,
        config.port,
        shared_memory=config.shared_memory == "auto",
    )


def _check_horovod() -> Iterator[Finding]:
    from distcnn.distribute.horovod_check import check_horovod

    return check_horovod()


def _horovod_fits(where: Surroundings) -> str | None:
    # A TF_CONFIG describes a cluster of TensorFlow's own.
    if where.cluster.size == 1 or where.cluster.scheme == "tf_config":
        return None
    if not where.has_horovod and where.cluster.scheme == "horovod":
        raise ClusterError(f"{where.started}, but Horovod is not installed in this environment")
    return where.started if where.has_horovod else None


def _multi_worker_fits(where: Surroundings) -> str | None:
    return where.started if where.cluster.size > 1 else None


def _mirrored_fits(where: Surroundings) -> str | None:
    return f"there are {where.devices} devices" if where.devices > 1 else None


def _one_device_fits(where: Surroundings) -> str | None:
    return "there is one device" if where.gpus else "there is no GPU"


STRATEGIES: dict[str, Strategy] = {
    "horovod": Strategy(
        build=_build_horovod,
        devices_per_process="one",
        joins_processes=True,
        max_devices=1,
        more_devices="Horovod has one device a process; start more processes, as by "
        "horovodrun -np N",
        fits=_horovod_fits,
        launch=launching.horovodrun,
        check=_check_horovod,
        can_compress=True,
        has_shared_memory=True,
    ),
    "multi_worker": Strategy(
        build=_build_multi_worker,
        devices_per_process="all",
        joins_processes=True,
        fits=_multi_worker_fits,
        launch=launching.tf_config,
        listens_publicly=True,
    ),
    "mirrored": Strategy(
        build=_build_mirrored,
        devices_per_process="all",
        joins_processes=False,
        fits=_mirrored_fits,
    ),
    "one_device": Strategy(
        build=_build_one_device,
        devices_per_process="one",
        joins_processes=False,
        max_devices=1,
        more_devices="distribute.strategy one_device has one; use mirrored",
        fits=_one_device_fits,
    ),
}
"""The strategies by their name in the configuration, in the order in which `auto` tries them."""

AUTO = "auto"
"""Stands for the first strategy of the table that fits."""

STRATEGY_NAMES: Mapping[str, object] = ChainMap({AUTO: None}, STRATEGIES)  # type: ignore[arg-type]
"""What `distribute.strategy` may be."""


def strategy_of(name: str) -> Strategy:
    """Returns a strategy by its name.

    Raises:
        UsageError: If there is none of that name.
    """
    found: Strategy = look_up("distribute.strategy", name, STRATEGIES)
    return found


def has_shared_memory(name: str) -> bool:
    """Returns whether a strategy may reduce through shared memory; False for an unknown name."""
    return name in STRATEGIES and STRATEGIES[name].has_shared_memory


def default_strategy(workers: int) -> str:
    """Returns the first strategy of the table for one worker, or for several."""
    return next(n for n, s in STRATEGIES.items() if s.trains_several == (workers > 1))


def require_supported(config: DistributeConfig) -> None:
    """Checks the distribute section against what its strategy can do.

    Raises:
        UsageError: If the strategy is unknown, or cannot do what other keys ask for.
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
    """Resolves the strategy `auto`, and refuses one that cannot serve the processes started.

    Args:
        config: The distribute section of a run.
        cluster: The processes that were started, and which of them this one is.
        gpus: GPUs that this process sees.
        has_horovod: Whether Horovod is installed; looked up by default.

    Returns:
        The name of the strategy, and the reason.

    Raises:
        UsageError: If the strategy asked for cannot train together what was started.
    """
    require_supported(config)
    if has_horovod is None:
        has_horovod = importlib.util.find_spec("horovod") is not None
    where = Surroundings(cluster, config.devices or gpus, gpus, has_horovod)
    if config.strategy != AUTO:
        if cluster.size > 1 and not STRATEGIES[config.strategy].joins_processes:
            able = " or ".join(n for n, other in STRATEGIES.items() if other.joins_processes)
            raise UsageError(
                f"distribute.strategy is {config.strategy}, but {where.started}, which would train "
                f"{cluster.size} separate models; use {able}"
            )
        return config.strategy, "asked for"
    for name, strategy in STRATEGIES.items():
        reason = strategy.fits(where)
        if reason is not None:
            return name, reason
    raise AssertionError("the last strategy of the table fits a single process")
