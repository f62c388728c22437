"""Where this process stands among those that train together: a pure function of the environment.

The first of these that is set decides; the others that are set must agree with it:

1. Horovod's launcher: `HOROVOD_RANK` and its kin, hosts in `DISTCNN_HOSTS` (`host:slots,...`)
2. `TF_CONFIG`, as TensorFlow and Kubeflow's TFJob define it
3. Slurm: `SLURM_PROCID` and its kin, inside `srun`
4. Open MPI: `OMPI_COMM_WORLD_RANK` and its kin; else PMI (MPICH, Intel MPI): `PMI_RANK`, `PMI_SIZE`
5. Kubernetes: `JOB_COMPLETION_INDEX` of an indexed Job, its pods in `DISTCNN_HOSTS`

Nothing here imports TensorFlow.
"""

import json
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distcnn.errors import UsageError

Environment = Mapping[str, str]


class ClusterError(UsageError):
    """The environment contradicts itself about where this process stands."""


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """The processes of a run, and which of them this one is.

    Attributes:
        scheme: Who says so: alone, horovod, tf_config, slurm, openmpi, pmi, kubernetes.
        rank: Number of this process, from 0.
        size: Number of processes.
        local_rank: Number of this process among those on its host.
        local_size: Processes on this host.
        hosts: Host name of each rank, or None if only the launcher knows.
        addresses: `host:port` of each rank, where the environment gives ports, else None.
        job: A name that all processes of the run share and other runs do not.
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
        """Whether this is rank 0, which alone prints and writes."""
        return self.rank == 0

    @property
    def one_host(self) -> bool:
        """Whether all processes are on this host."""
        return self.local_size == self.size

    def port(self, asked: int | None) -> int:
        """Returns the first port of the run: as asked for, or derived from the job's name.

        Ports 10000 to 29999 lie below those that systems hand out for outgoing connections.
        """
        return asked or 10_000 + zlib.crc32(self.job.encode()) % 20_000

    def worker_addresses(self, port: int | None) -> tuple[str, ...]:
        """Returns `host:port` of every rank.

        Args:
            port: First port, or None for `addresses` or one derived from the job.

        Raises:
            ClusterError: If the hosts are not known.
        """
        if self.addresses is not None and port is None:
            return self.addresses
        if self.hosts is None:
            raise ClusterError(
                f"{self.scheme} does not say on which hosts the {self.size} processes are; set "
                "DISTCNN_HOSTS=host:slots,host:slots in the order of the ranks, or TF_CONFIG"
            )
        first = self.port(port)
        hosts = ("127.0.0.1",) * self.size if self.one_host else self.hosts
        seen: dict[str, int] = {}
        addresses = []
        for host in hosts:
            addresses.append(f"{host}:{first + seen.get(host, 0)}")
            seen[host] = seen.get(host, 0) + 1
        return tuple(addresses)


def find_cluster(environment: Environment) -> Cluster:
    """Reads where this process stands.

    Args:
        environment: Environment variables.

    Returns:
        The cluster; of one process if nothing in the environment speaks of more.

    Raises:
        ClusterError: If two schemes disagree, a host is missing from a list, sizes do not match, or
            a variable cannot be read.
    """
    readers: list[Callable[[Environment], Cluster | None]] = [
        _from_horovod,
        _from_tf_config,
        _from_slurm,
        _from_openmpi,
        _from_pmi,
        _from_kubernetes,
    ]
    found = [cluster for reader in readers if (cluster := reader(environment)) is not None]
    if not found and "JOB_COMPLETION_INDEX" in environment and "DISTCNN_HOSTS" not in environment:
        raise ClusterError(
            "JOB_COMPLETION_INDEX says that this is a pod of an indexed Job, but nothing says "
            "which pods train together; set DISTCNN_HOSTS=pod-0.service,pod-1.service (the pod's "
            "own name alone, if it trains alone) or TF_CONFIG, as in launch/k8s/indexed-job.yaml"
        )
    # A single task that Slurm started may itself start the processes of the run.
    if len(found) > 1:
        found = [c for c in found if c.scheme != "slurm" or c.size > 1] or found[:1]
    if not found:
        return Cluster()
    first = found[0]
    for other in found[1:]:
        if (other.rank, other.size) != (first.rank, first.size):
            raise ClusterError(
                f"{first.scheme} says that this is process {first.rank} of {first.size}, "
                f"{other.scheme} says {other.rank} of {other.size}; unset the variables of the one "
                f"that did not start this run ({_VARIABLES[first.scheme]} or "
                f"{_VARIABLES[other.scheme]})"
            )
    return first


_VARIABLES = {
    "horovod": "HOROVOD_RANK, HOROVOD_SIZE",
    "tf_config": "TF_CONFIG",
    "slurm": "SLURM_PROCID, SLURM_STEP_NUM_TASKS",
    "openmpi": "OMPI_COMM_WORLD_RANK, OMPI_COMM_WORLD_SIZE",
    "pmi": "PMI_RANK, PMI_SIZE",
    "kubernetes": "JOB_COMPLETION_INDEX, DISTCNN_HOSTS",
}


def _from_horovod(environment: Environment) -> Cluster | None:
    if "HOROVOD_RANK" not in environment:
        return None
    rank, size = _place(environment, "HOROVOD_RANK", "HOROVOD_SIZE")
    local_rank, local_size = _place(environment, "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE", size)
    own = environment.get("HOROVOD_HOSTNAME", "localhost")
    hosts = _listed_hosts(environment, size, rank, own)
    if hosts is None and local_size == size:
        hosts = (own,) * size
    port = environment.get("HOROVOD_GLOO_RENDEZVOUS_PORT", "")
    return Cluster(
        scheme="horovod",
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        hosts=hosts,
        job=f"horovod {port}",
    )


def _from_tf_config(environment: Environment) -> Cluster | None:
    text = environment.get("TF_CONFIG")
    if not text:
        return None
    expected = (
        'expected {"cluster": {"worker": ["host:port", ...]}, "task": {"type": "worker", '
        '"index": 0}}'
    )
    try:
        content = json.loads(text)
        jobs, task = content["cluster"], content["task"]
        kind, index = task["type"], int(task["index"])
        unknown = set(jobs) - {"chief", "worker"}
        addresses = (*jobs.get("chief", []), *jobs.get("worker", []))
        count = len(jobs.get(kind, []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"TF_CONFIG cannot be read ({type(error).__name__}: {error}); {expected}"
        ) from None
    if unknown or kind not in ("chief", "worker"):
        odd = ", ".join(sorted(unknown)) or kind
        raise ClusterError(f"TF_CONFIG names the job {odd}; expected chief and worker only")
    if not all(re.fullmatch(r".+:\d+", address) for address in addresses):
        raise ClusterError(f"TF_CONFIG has the addresses {', '.join(addresses)}; {expected}")
    if len(set(addresses)) < len(addresses):
        raise ClusterError(f"TF_CONFIG names an address twice: {', '.join(addresses)}")
    if not 0 <= index < count:
        raise ClusterError(
            f"TF_CONFIG says that this is {kind} {index}, but lists {count} of them; this host is "
            "missing from the list"
        )
    rank = index + (len(jobs.get("chief", [])) if kind == "worker" else 0)
    hosts = tuple(address.rpartition(":")[0] for address in addresses)
    return _on_hosts("tf_config", rank, hosts, job=",".join(addresses), addresses=addresses)


def _from_slurm(environment: Environment) -> Cluster | None:
    # Without a step this is the batch script itself, which is not one of the tasks.
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    rank, size = _place(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
    nodes = expand_nodelist(environment.get("SLURM_STEP_NODELIST", ""))
    tasks = _expand_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", ""))
    if len(nodes) != len(tasks) or sum(tasks) != size:
        raise ClusterError(
            f"Slurm lists {len(nodes)} nodes (SLURM_STEP_NODELIST) with {tasks} tasks "
            f"(SLURM_STEP_TASKS_PER_NODE), but SLURM_STEP_NUM_TASKS is {size}"
        )
    hosts = tuple(node for node, count in zip(nodes, tasks, strict=True) for _ in range(count))
    own = environment.get("SLURMD_NODENAME", hosts[rank])
    if own not in nodes:
        raise ClusterError(
            f"this host is {own} (SLURMD_NODENAME), which is missing from SLURM_STEP_NODELIST "
            f"{environment['SLURM_STEP_NODELIST']}"
        )
    if own != hosts[rank]:
        raise ClusterError(
            f"Slurm placed task {rank} on {own}, not in blocks on {hosts[rank]}; start it with "
            "srun --distribution=block"
        )
    job = f"slurm {environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    return _on_hosts("slurm", rank, hosts, job=job)


def _from_openmpi(environment: Environment) -> Cluster | None:
    prefix = "OMPI_COMM_WORLD_"
    if f"{prefix}RANK" not in environment:
        return None
    rank, size = _place(environment, f"{prefix}RANK", f"{prefix}SIZE")
    local = _place(environment, f"{prefix}LOCAL_RANK", f"{prefix}LOCAL_SIZE", size)
    job = environment.get("PMIX_NAMESPACE", environment.get("OMPI_MCA_ess_base_jobid", ""))
    return _by_launcher("openmpi", environment, rank, size, local, f"openmpi {job}")


def _from_pmi(environment: Environment) -> Cluster | None:
    if "PMI_RANK" not in environment or "OMPI_COMM_WORLD_RANK" in environment:
        return None
    rank, size = _place(environment, "PMI_RANK", "PMI_SIZE")
    local = (rank, size)
    if "MPI_LOCALRANKID" in environment:
        local = _place(environment, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", size)
    return _by_launcher("pmi", environment, rank, size, local, "pmi")


def _from_kubernetes(environment: Environment) -> Cluster | None:
    launched = any(key in environment for key in ("HOROVOD_RANK", "OMPI_COMM_WORLD_RANK"))
    if launched or not {"JOB_COMPLETION_INDEX", "DISTCNN_HOSTS"} <= set(environment):
        return None  # a launcher inside the pod has its own ranks
    rank = _integer(environment, "JOB_COMPLETION_INDEX")
    hosts = _parse_hosts(environment["DISTCNN_HOSTS"])
    if len(hosts) == 1:
        return None
    if rank >= len(hosts):
        raise ClusterError(
            f"JOB_COMPLETION_INDEX is {rank}, but DISTCNN_HOSTS lists {len(hosts)} pods; this pod "
            "is missing from the list"
        )
    return _on_hosts("kubernetes", rank, hosts, job=environment["DISTCNN_HOSTS"])


def _by_launcher(
    scheme: str,
    environment: Environment,
    rank: int,
    size: int,
    local: tuple[int, int],
    job: str,
) -> Cluster:
    local_rank, local_size = local
    hosts = _listed_hosts(environment, size, rank, None)
    if hosts is None and local_size == size:
        hosts = ("localhost",) * size
    return Cluster(
        scheme=scheme,
        rank=rank,
        size=size,
        local_rank=local_rank,
        local_size=local_size,
        hosts=hosts,
        job=job,
    )


def _on_hosts(
    scheme: str,
    rank: int,
    hosts: tuple[str, ...],
    *,
    job: str,
    addresses: tuple[str, ...] | None = None,
) -> Cluster:
    own = hosts[rank]
    return Cluster(
        scheme=scheme,
        rank=rank,
        size=len(hosts),
        local_rank=hosts[:rank].count(own),
        local_size=hosts.count(own),
        hosts=hosts,
        addresses=addresses,
        job=job,
    )


def _listed_hosts(
    environment: Environment, size: int, rank: int, own: str | None
) -> tuple[str, ...] | None:
    if "DISTCNN_HOSTS" not in environment:
        return None
    hosts = _parse_hosts(environment["DISTCNN_HOSTS"])
    if len(hosts) < size:
        raise ClusterError(
            f"DISTCNN_HOSTS has {len(hosts)} slots, but {size} processes were started"
        )
    if own is not None and own not in hosts:
        raise ClusterError(f"this host is {own}, which is missing from DISTCNN_HOSTS")
    if own is not None and hosts[rank] != own:
        raise ClusterError(
            f"process {rank} is on {own}, but DISTCNN_HOSTS places it on {hosts[rank]}; list the "
            "hosts in the order of the ranks"
        )
    return hosts[:size]


def _parse_hosts(text: str) -> tuple[str, ...]:
    hosts: list[str] = []
    for entry in text.split(","):
        match = re.fullmatch(r"\s*([^:=\s]+)(?::(\d+))?\s*", entry)
        if match is None:
            raise ClusterError(f"DISTCNN_HOSTS is {text!r}; expected host:slots,host:slots")
        hosts += [match[1]] * int(match[2] or 1)
    return tuple(hosts)


def expand_nodelist(text: str) -> list[str]:
    """Expands Slurm's short form of a list of nodes.

    Args:
        text: Such as `gpu[01-03,7],login`.

    Returns:
        Such as `gpu01, gpu02, gpu03, gpu7, login`.
    """
    nodes: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = re.split(r"\[([^\]]*)\]", name)
        expanded = [parts[0]]
        for inside, after in zip(parts[1::2], parts[2::2], strict=True):
            choices = [number for piece in inside.split(",") for number in _numbers(piece)]
            expanded = [head + number + after for head in expanded for number in choices]
        nodes += expanded
    return nodes


def _numbers(piece: str) -> list[str]:
    first, dash, last = piece.partition("-")
    if not dash:
        return [first]
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def _expand_counts(text: str) -> list[int]:
    """Expands Slurm's tasks per node, such as `2(x3),1`."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def _place(
    environment: Environment, rank_key: str, size_key: str, at_most: int | None = None
) -> tuple[int, int]:
    rank, size = _integer(environment, rank_key), _integer(environment, size_key)
    if not 0 <= rank < size:
        raise ClusterError(f"{rank_key} is {rank}, but {size_key} is {size}")
    if at_most is not None and size > at_most:
        raise ClusterError(f"{size_key} is {size}, but the whole run has {at_most} processes")
    return rank, size


def _integer(environment: Environment, key: str) -> int:
    value = environment.get(key)
    if value is None or not re.fullmatch(r"\d+", value):
        received = "not set" if value is None else repr(value)
        raise ClusterError(f"{key} is {received}; expected a whole number")
    return int(value)
