"""How Horovod's processes find each other where its own launcher did not start them.

Horovod's Gloo wants a small HTTP store that every process can reach. `horovodrun` runs one; under
Slurm, Kubernetes, Open MPI or TF_CONFIG the chief runs it here, on the one address that is needed.
"""

import functools
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.horovod_internals import start_rendezvous_server

_T = TypeVar("_T")

_PATIENCE_SECONDS = 300
"""How long the first process waits for the last one. Once they begin to connect, Horovod gives them
30 s, too few where one starts much later."""


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Reaches the other hosts without a proxy."""


class Rendezvous:
    """The store of one run.

    Args:
        cluster: Where this process stands.
        port: First port of the run, or None to derive it from the job.
    """

    def __init__(self, cluster: Cluster, port: int | None) -> None:
        self._cluster = cluster
        self._port = port
        self._server: Any = None

    def open(self) -> dict[str, str]:
        """Starts the store if this is the chief, waits for it otherwise.

        Returns:
            The environment variables that Horovod reads; none if its launcher set them, or MPI
            serves instead.

        Raises:
            DistcnnError: If the hosts are unknown, or the store cannot be opened or reached.
        """
        if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ or _started_by_mpi(self._cluster):
            return {}
        cluster = self._cluster
        if cluster.size == 1:
            return {}
        address, port = self._where()
        if cluster.is_chief:
            self._serve(address, port)
        _wait_for_all(f"http://{address}:{port}/started", cluster)
        hosts = cluster.hosts or ()
        cross = _hosts_with(hosts, cluster.local_rank)
        return {
            "HOROVOD_RANK": str(cluster.rank),
            "HOROVOD_SIZE": str(cluster.size),
            "HOROVOD_LOCAL_RANK": str(cluster.local_rank),
            "HOROVOD_LOCAL_SIZE": str(cluster.local_size),
            "HOROVOD_CROSS_RANK": str(cross.index(hosts[cluster.rank])),
            "HOROVOD_CROSS_SIZE": str(len(cross)),
            "HOROVOD_HOSTNAME": hosts[cluster.rank],
            "HOROVOD_GLOO_RENDEZVOUS_ADDR": address,
            "HOROVOD_GLOO_RENDEZVOUS_PORT": str(port),
            "HOROVOD_CONTROLLER": "gloo",
            "HOROVOD_CPU_OPERATIONS": "gloo",
            "HOROVOD_GLOO_IFACE": _interface_towards(address, port, cluster),
        }

    def _where(self) -> tuple[str, int]:
        """Returns the store's address: beside the chief's own port, which multi_worker may use."""
        chief = self._cluster.worker_addresses(self._port)[0]
        host, _, port = chief.rpartition(":")
        return _address_of(host), int(port) + self._cluster.size

    def _serve(self, address: str, port: int) -> None:
        from horovod.runner.common.util.hosts import SlotInfo

        cluster = self._cluster
        hosts = cluster.hosts or ()
        plan = []
        for rank, host in enumerate(hosts):
            local_rank = hosts[:rank].count(host)
            cross = _hosts_with(hosts, local_rank)
            plan.append(
                SlotInfo(
                    hostname=host,
                    rank=rank,
                    local_rank=local_rank,
                    cross_rank=cross.index(host),
                    size=cluster.size,
                    local_size=hosts.count(host),
                    cross_size=len(cross),
                )
            )
        try:
            self._server = start_rendezvous_server(address, port, plan)
        except OSError as error:
            raise DistcnnError(
                f"rank 0 cannot listen at {address}:{port}: {error.strerror}; give another "
                "--distribute.port"
            ) from None


def _hosts_with(hosts: Sequence[str], local_rank: int) -> list[str]:
    """Returns the hosts that have a process of some local rank: Horovod's cross communicator."""
    return [host for host in dict.fromkeys(hosts) if hosts.count(host) > local_rank]


def _started_by_mpi(cluster: Cluster) -> bool:
    from horovod.tensorflow import mpi_built

    return cluster.scheme in ("openmpi", "pmi") and bool(mpi_built())


def _address_of(host: str) -> str:
    """Looks a host up, which in Kubernetes has a name only once it is there."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    return _patiently(
        lambda: socket.gethostbyname(host),
        deadline,
        f"the host {host} of rank 0 cannot be found; correct the host list, /etc/hosts or DNS",
    )


def _wait_for_all(url: str, cluster: Cluster) -> None:
    """Reports this process at the store, then waits until every other one is there."""
    deadline = time.monotonic() + _PATIENCE_SECONDS
    where = f"at {url.split('/')[2]}; did it start, and is the port open between the hosts?"
    own = urllib.request.Request(f"{url}/{cluster.rank}", data=b"1", method="PUT")
    _patiently(lambda: _ask(own), deadline, f"rank 0 did not answer {where}")
    for rank in range(cluster.size):
        other = urllib.request.Request(f"{url}/{rank}")
        _patiently(functools.partial(_ask, other), deadline, f"rank {rank} did not come {where}")


def _ask(request: urllib.request.Request) -> None:
    try:
        _DIRECT.open(request, timeout=5).close()
    except urllib.error.HTTPError as error:  # which is a response, and holds its connection
        error.close()
        raise


def _patiently(attempt: Callable[[], _T], deadline: float, complaint: str) -> _T:
    """Tries again until it works.

    Raises:
        DistcnnError: The complaint, with the last cause, when the deadline has passed.
    """
    while True:
        try:
            return attempt()
        except OSError as error:
            if time.monotonic() > deadline:
                raise DistcnnError(f"{complaint} ({error})") from None
            time.sleep(0.2)


def _interface_towards(address: str, port: int, cluster: Cluster) -> str:
    """Returns the network interface from which the other hosts are reached."""
    import psutil

    own = address
    if not cluster.one_host and not cluster.is_chief:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((address, port))
            own = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(entry.address == own for entry in addresses):
            return name
    raise DistcnnError(
        f"no network interface of this host has the address {own}, under which the other hosts "
        "know it; correct the hosts file or the host list"
    )
