"""Finds the cluster that this process belongs to, a pure function of the environment.

The first launcher of these whose variables are set decides; the others must agree with it:

1. Horovod: `HOROVOD_RANK` and related variables, hosts in `DISTCNN_HOSTS` (`host:slots,...`, where
   a host may be a range, `host-[0-3]`)
2. `TF_CONFIG`, as defined by TensorFlow and Kubeflow's TFJob
3. Slurm: `SLURM_PROCID` and related variables, inside `srun`
4. Open MPI: `OMPI_COMM_WORLD_RANK` and related variables; else PMI (MPICH, Intel MPI): `PMI_RANK`,
   `PMI_SIZE`
5. Kubernetes: `JOB_COMPLETION_INDEX` of an indexed Job, its pods in `DISTCNN_HOSTS`

Nothing here imports TensorFlow.
"""

from distcnn.runtime.launchers import LAUNCHERS, Environment
from distcnn.runtime.membership import Cluster, ClusterError

__all__ = ["Cluster", "ClusterError", "find_cluster"]


def find_cluster(environment: Environment) -> Cluster:
    """Determines the place of this process among those that train together.

    Args:
        environment: Environment variables.

    Returns:
        The cluster; a single process if the environment describes no other.

    Raises:
        ClusterError: If two launchers disagree, a host is missing from a list, sizes do not match,
            or a variable cannot be read.
    """
    clusters = (launcher.read(environment) for launcher in LAUNCHERS.values())
    found = [cluster for cluster in clusters if cluster is not None]
    if not found and "JOB_COMPLETION_INDEX" in environment and "DISTCNN_HOSTS" not in environment:
        raise ClusterError(
            "JOB_COMPLETION_INDEX is set, as in a pod of an indexed Job, but the pods that train "
            "together are unknown; set DISTCNN_HOSTS=pod-0.service,pod-1.service (only the pod's "
            "own name if it trains alone) or TF_CONFIG, as in launch/k8s/indexed-job.yaml"
        )
    if len(found) > 1:
        found = [c for c in found if not _only_launches(c, found)] or found[:1]
    if not found:
        return Cluster()
    first = found[0]
    for other in found[1:]:
        variables = [", ".join(LAUNCHERS[c.scheme].variables) for c in (first, other)]
        if (other.rank, other.size) != (first.rank, first.size):
            raise ClusterError(
                f"{first.scheme} reports process {first.rank} of {first.size}, but {other.scheme} "
                f"reports {other.rank} of {other.size}; unset the variables of the one that did "
                f"not start this run ({variables[0]} or {variables[1]})"
            )
    return first


def _only_launches(cluster: Cluster, found: list[Cluster]) -> bool:
    """Returns whether a cluster is a Slurm step whose tasks launched the processes of the run.

    That is so for a single task, and for the daemons that `mpirun` starts through `srun`: one on
    each node, or on each but its own. The processes that they start inherit their variables.
    """
    if cluster.scheme != "slurm":
        return False
    one_per_node = len(set(cluster.hosts or ())) == cluster.size
    by_mpi = any(c.scheme in ("openmpi", "pmi") and c.size > 1 for c in found)
    return cluster.size == 1 or (one_per_node and by_mpi)
