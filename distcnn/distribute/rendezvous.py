"""How Horovod's processes find each other if its own launcher did not start them.

Horovod's Gloo needs a small HTTP store that every process can reach. `horovodrun` runs one; under
Slurm, Kubernetes, Open MPI or TF_CONFIG the chief runs it here, listening on one address only and
answering the processes of the run only.
"""

import functools
import os
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import TypeVar

from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster
from distcnn.runtime.rendezvous_store import RendezvousServer

_T = TypeVar("_T")

_TIMEOUT_SECONDS = 300
"""How long the first process waits for the last one. Horovod itself allows 30 s once processes
begin to connect, which is too short if one starts much later."""


_NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Opens URLs on the other hosts without a proxy."""


class Rendezvous:
    """The store through which the processes of one run find each other.

    Args:
        cluster: The processes of the run, and which of them this one is.
        port: First port of the run, or None to derive it from the job.
    """

    def __init__(self, cluster: Cluster, port: int | None) -> None:
        self._cluster = cluster
        self._port = port
        self._server: RendezvousServer | None = None

    def open(self) -> dict[str, str]:
        """Starts the store if this is the chief, then waits until all processes have registered.

        Returns:
            The environment variables that Horovod reads; empty if there is one process, if
            Horovod's launcher has set them, or if MPI is used instead.

        Raises:
            DistcnnError: If the hosts are unknown, the store cannot be opened or reached, or a rank
                does not register.
        """
        if "HOROVOD_GLOO_RENDEZVOUS_ADDR" in os.environ or _started_by_mpi(self._cluster):
            return {}
        cluster = self._cluster
        if cluster.size == 1:
            return {}
        address, port = self._store_address()
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

    def _store_address(self) -> tuple[str, int]:
        """Returns the store's address and port, one that multi_worker does not use."""
        chief = self._cluster.worker_addresses(self._port)[0]
        host, _, port = chief.rpartition(":")
        return _resolve(host), int(port) + self._cluster.size

    def _serve(self, address: str, port: int) -> None:
        try:
            self._server = RendezvousServer(address, port, self._cluster.hosts or ())
        except OSError as error:
            raise DistcnnError(
                f"rank 0 cannot listen at {address}:{port}: {error.strerror}; choose another "
                "--distribute.port"
            ) from None
        self._server.start()


def _hosts_with(hosts: Sequence[str], local_rank: int) -> list[str]:
    """Returns the hosts that have a process of the local rank: Horovod's cross communicator."""
    return [host for host in dict.fromkeys(hosts) if hosts.count(host) > local_rank]


def _started_by_mpi(cluster: Cluster) -> bool:
    from horovod.tensorflow import mpi_built

    return cluster.scheme in ("openmpi", "pmi") and bool(mpi_built())


def _resolve(host: str) -> str:
    """Returns the IP address of a host; in Kubernetes its name resolves only once it runs."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    return _retry(
        lambda: socket.gethostbyname(host),
        deadline,
        f"the host {host} of rank 0 cannot be resolved; correct the host list, /etc/hosts or DNS",
    )


def _wait_for_all(url: str, cluster: Cluster) -> None:
    """Registers this process at the store, then waits until all others have registered."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    hint = f"at {url.split('/')[2]}; did it start, and is the port open between the hosts?"
    register = urllib.request.Request(f"{url}/{cluster.rank}", data=b"1", method="PUT")
    _retry(lambda: _send(register), deadline, f"rank 0 did not answer {hint}")
    for rank in range(cluster.size):
        query = urllib.request.Request(f"{url}/{rank}")
        _retry(functools.partial(_send, query), deadline, f"rank {rank} did not register {hint}")


def _send(request: urllib.request.Request) -> None:
    try:
        _NO_PROXY.open(request, timeout=5).close()
    except urllib.error.HTTPError as error:  # also a response, which keeps its connection open
        error.close()
        raise


def _retry(attempt: Callable[[], _T], deadline: float, message: str) -> _T:
    """Repeats an attempt until it succeeds.

    Raises:
        DistcnnError: With the message and the last cause, once the deadline has passed.
    """
    while True:
        try:
            return attempt()
        except OSError as error:
            if time.monotonic() > deadline:
                raise DistcnnError(f"{message} ({error})") from None
            time.sleep(0.2)


def _interface_towards(address: str, port: int, cluster: Cluster) -> str:
    """Returns the network interface that leads to the other hosts."""
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
        f"no network interface of this host has {own}, the address by which the other hosts know "
        "it; correct the hosts file or the host list"
    )
