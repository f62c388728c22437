"""The processes of a run, and which of them this one is. Nothing here imports TensorFlow."""

import zlib
from dataclasses import dataclass

from distcnn.errors import UsageError


class ClusterError(UsageError):
    """The environment does not describe one consistent cluster."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of a run, and which of them this one is.

    Attributes:
        scheme: Source of this description: alone, horovod, tf_config, slurm, openmpi, pmi or
            kubernetes.
        rank: Number of this process, counted from 0.
        size: Number of processes.
        local_rank: Number of this process among those on its host.
        local_size: Processes on this host.
        hosts: Host name of each rank, or None if only the launcher knows them.
        addresses: `host:port` of each rank, or None if the environment gives no ports.
        job: A name shared by all processes of this run and no other run.
    """

    scheme: str = "alone"
    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    hosts: tuple[str, ...] | None = ("localhost",)
    addresses: tuple[str, ...] | None = None
    job: str = ""

    @property
    def is_chief(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes."""
        return self.rank == 0

    @property
    def one_host(self) -> bool:
        """Whether all processes are on this host."""
        return self.local_size == self.size

    def port(self, configured: int | None) -> int:
        """Returns the first port of the run: the configured one, or one derived from `job`.

        Derived ports, 10000 to 29999, lie below those that systems use for outgoing connections.
        """
        return configured or 10_000 + zlib.crc32(self.job.encode()) % 20_000

    def worker_addresses(self, port: int | None) -> tuple[str, ...]:
        """Returns `host:port` of every rank.

        Args:
            port: First port, or None for `addresses` or else a port derived from `job`.

        Raises:
            ClusterError: If the hosts are unknown.
        """
        if self.addresses is not None and port is None:
            return self.addresses
        if self.hosts is None:
            raise ClusterError(
                f"{self.scheme} does not provide the hosts of the {self.size} processes; set "
                "DISTCNN_HOSTS=host:slots,host:slots in the order of the ranks, or TF_CONFIG"
            )
        first = self.port(port)
        hosts = ("127.0.0.1",) * self.size if self.one_host else self.hosts
        used_ports: dict[str, int] = {}
        addresses = []
        for host in hosts:
            addresses.append(f"{host}:{first + used_ports.get(host, 0)}")
            used_ports[host] = used_ports.get(host, 0) + 1
        return tuple(addresses)
