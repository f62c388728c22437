"""The table of launchers: how each tells a process its rank, the size of the run and its hosts.

To add one, write a reader of its environment variables and add an entry to `LAUNCHERS`. Nothing
here imports TensorFlow.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from distcnn.runtime.files import parse_json
from distcnn.runtime.membership import Cluster, ClusterError

Environment = Mapping[str, str]


@dataclass(frozen=True)
class Launcher:
    """One way to start the processes of a run.

    Attributes:
        read: Returns the cluster that the environment describes, or None if the launcher's
            variables are unset.
        variables: The variables that give a process its rank and the size, for messages.
        prefixes: Prefixes of all its variables, which are removed from the environment of a process
            that must not join the cluster.
    """

    read: Callable[[Environment], Cluster | None]
    variables: tuple[str, ...]
    prefixes: tuple[str, ...]


def _from_horovod(environment: Environment) -> Cluster | None:
    if "HOROVOD_RANK" not in environment:
        return None
    rank, size = _rank_and_size(environment, "HOROVOD_RANK", "HOROVOD_SIZE")
    local_rank, local_size = _rank_and_size(
        environment, "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE", size
    )
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
        content = parse_json(text)
        jobs, task = content["cluster"], content["task"]
        kind, index = task["type"], int(task["index"])
        # An empty list, as some operators write for "ps", names nobody.
        unknown = {job for job, members in jobs.items() if members} - {"chief", "worker"}
        addresses = (*jobs.get("chief", []), *jobs.get("worker", []))
        count = len(jobs.get(kind, []))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ClusterError(
            f"TF_CONFIG cannot be read ({type(error).__name__}: {error}); {expected}"
        ) from None
    if unknown or kind not in ("chief", "worker"):
        names = ", ".join(sorted(unknown)) or kind
        raise ClusterError(f"TF_CONFIG names the job {names}; expected chief and worker only")
    if not all(re.fullmatch(r".+:\d+", address) for address in addresses):
        raise ClusterError(f"TF_CONFIG lists the addresses {', '.join(addresses)}; {expected}")
    if len(set(addresses)) < len(addresses):
        raise ClusterError(f"TF_CONFIG lists an address twice: {', '.join(addresses)}")
    if not 0 <= index < count:
        raise ClusterError(
            f"TF_CONFIG gives this process the task {kind} {index}, but lists {count} of them; "
            "this host is missing from the list"
        )
    rank = index + (len(jobs.get("chief", [])) if kind == "worker" else 0)
    hosts = tuple(address.rpartition(":")[0] for address in addresses)
    return _from_hosts("tf_config", rank, hosts, job=",".join(addresses), addresses=addresses)


def _from_slurm(environment: Environment) -> Cluster | None:
    # Outside a step, this is the batch script itself, which is not one of the tasks.
    if "SLURM_PROCID" not in environment or "SLURM_STEP_NUM_TASKS" not in environment:
        return None
    rank, size = _rank_and_size(environment, "SLURM_PROCID", "SLURM_STEP_NUM_TASKS")
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
            f"Slurm placed task {rank} on {own}; expected {hosts[rank]}, the host in block "
            "distribution; start it with srun --distribution=block"
        )
    job = f"slurm {environment.get('SLURM_JOB_ID')}.{environment.get('SLURM_STEP_ID')}"
    return _from_hosts("slurm", rank, hosts, job=job)


def _from_openmpi(environment: Environment) -> Cluster | None:
    prefix = "OMPI_COMM_WORLD_"
    if f"{prefix}RANK" not in environment:
        return None
    rank, size = _rank_and_size(environment, f"{prefix}RANK", f"{prefix}SIZE")
    local = _rank_and_size(environment, f"{prefix}LOCAL_RANK", f"{prefix}LOCAL_SIZE", size)
    job = environment.get("PMIX_NAMESPACE", environment.get("OMPI_MCA_ess_base_jobid", ""))
    return _with_local_rank("openmpi", environment, rank, size, local, f"openmpi {job}")


def _from_pmi(environment: Environment) -> Cluster | None:
    if "PMI_RANK" not in environment or "OMPI_COMM_WORLD_RANK" in environment:
        return None
    rank, size = _rank_and_size(environment, "PMI_RANK", "PMI_SIZE")
    local = (rank, size)
    if "MPI_LOCALRANKID" in environment:
        local = _rank_and_size(environment, "MPI_LOCALRANKID", "MPI_LOCALNRANKS", size)
    return _with_local_rank("pmi", environment, rank, size, local, "pmi")


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
    return _from_hosts("kubernetes", rank, hosts, job=environment["DISTCNN_HOSTS"])


def _with_local_rank(
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


def _from_hosts(
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


_RANGE = r"\d+(?:-\d+)?"
_LISTED_HOST = re.compile(
    rf"\s*((?:[^:=,\s\[\]]|\[{_RANGE}(?:,{_RANGE})*\])+)(?::(\d+))?\s*",
)


def _parse_hosts(text: str) -> tuple[str, ...]:
    hosts: list[str] = []
    for entry in re.split(r",(?![^\[]*\])", text):  # not at commas in brackets
        match = _LISTED_HOST.fullmatch(entry)
        names = [] if match is None else expand_nodelist(match[1])
        if match is None or not names:
            raise ClusterError(
                f"DISTCNN_HOSTS is {text!r}; expected host:slots,host:slots or host-[0-3]:slots"
            )
        hosts += [name for name in names for _ in range(int(match[2] or 1))]
    return tuple(hosts)


def expand_nodelist(text: str) -> list[str]:
    """Expands Slurm's compact form of a list of nodes.

    Args:
        text: For example `gpu[01-03,7],login`.

    Returns:
        For example `gpu01, gpu02, gpu03, gpu7, login`.
    """
    nodes: list[str] = []
    for name in re.findall(r"(?:[^,\[]|\[[^\]]*\])+", text):
        parts = re.split(r"\[([^\]]*)\]", name)
        expanded = [parts[0]]
        for inside, after in zip(parts[1::2], parts[2::2], strict=True):
            numbers = [number for item in inside.split(",") for number in _expand_range(item)]
            expanded = [head + number + after for head in expanded for number in numbers]
        nodes += expanded
    return nodes


def _expand_range(item: str) -> list[str]:
    first, dash, last = item.partition("-")
    if not dash:
        return [first]
    return [str(n).zfill(len(first)) for n in range(int(first), int(last) + 1)]


def _expand_counts(text: str) -> list[int]:
    """Expands Slurm's numbers of tasks per node, for example `2(x3),1`."""
    counts: list[int] = []
    for count, repeat in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(repeat or 1)
    return counts


def _rank_and_size(
    environment: Environment, rank_key: str, size_key: str, max_size: int | None = None
) -> tuple[int, int]:
    rank, size = _integer(environment, rank_key), _integer(environment, size_key)
    if not 0 <= rank < size:
        raise ClusterError(f"{rank_key} is {rank}, but {size_key} is {size}")
    if max_size is not None and size > max_size:
        raise ClusterError(f"{size_key} is {size}, but the whole run has {max_size} processes")
    return rank, size


def _integer(environment: Environment, key: str) -> int:
    value = environment.get(key)
    if value is None or not re.fullmatch(r"\d+", value):
        received = "not set" if value is None else repr(value)
        raise ClusterError(f"{key} is {received}; expected a whole number")
    return int(value)


LAUNCHERS: dict[str, Launcher] = {
    "horovod": Launcher(_from_horovod, ("HOROVOD_RANK", "HOROVOD_SIZE"), ("HOROVOD_",)),
    "tf_config": Launcher(_from_tf_config, ("TF_CONFIG",), ("TF_CONFIG",)),
    "slurm": Launcher(_from_slurm, ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"), ("SLURM_",)),
    "openmpi": Launcher(
        _from_openmpi, ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"), ("OMPI_",)
    ),
    "pmi": Launcher(_from_pmi, ("PMI_RANK", "PMI_SIZE"), ("PMI",)),
    "kubernetes": Launcher(
        _from_kubernetes,
        ("JOB_COMPLETION_INDEX", "DISTCNN_HOSTS"),
        ("JOB_COMPLETION", "DISTCNN_HOSTS"),
    ),
}
"""The launchers by `Cluster.scheme`, in order of precedence."""


def without_launchers(environment: Environment) -> dict[str, str]:
    """Returns an environment without the variables that place a process in a cluster."""
    prefixes = tuple(prefix for launcher in LAUNCHERS.values() for prefix in launcher.prefixes)
    return {key: value for key, value in environment.items() if not key.startswith(prefixes)}
