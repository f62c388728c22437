"""The environment of every launcher, and errors that name contradictions in it."""

import json

import pytest

from distcnn.runtime.cluster import Cluster, ClusterError, find_cluster
from distcnn.runtime.launchers import expand_nodelist


def horovod(rank=2, size=4, local_rank=0, local_size=2, **more):
    return {
        "HOROVOD_RANK": str(rank),
        "HOROVOD_SIZE": str(size),
        "HOROVOD_LOCAL_RANK": str(local_rank),
        "HOROVOD_LOCAL_SIZE": str(local_size),
        "HOROVOD_HOSTNAME": "b",
        **more,
    }


def tf_config(index=1, workers=("a:1", "b:1"), kind="worker", **jobs):
    content = {"cluster": {"worker": list(workers), **jobs}, "task": {"type": kind, "index": index}}
    return {"TF_CONFIG": json.dumps(content)}


def slurm(rank=2, size=4, nodes="gpu[1-2]", tasks="2(x2)", node="gpu2", **more):
    return {
        "SLURM_PROCID": str(rank),
        "SLURM_STEP_NUM_TASKS": str(size),
        "SLURM_STEP_NODELIST": nodes,
        "SLURM_STEP_TASKS_PER_NODE": tasks,
        "SLURMD_NODENAME": node,
        "SLURM_JOB_ID": "7",
        "SLURM_STEP_ID": "0",
        **more,
    }


def openmpi(rank=1, size=4, local_rank=1, local_size=4, **more):
    prefix = "OMPI_COMM_WORLD_"
    values = {"RANK": rank, "SIZE": size, "LOCAL_RANK": local_rank, "LOCAL_SIZE": local_size}
    return {f"{prefix}{key}": str(value) for key, value in values.items()} | more


def test_alone():
    alone = find_cluster({"HOME": "/home/me", "SLURM_PROCID": "0", "SLURM_NTASKS": "8"})
    assert alone == Cluster()
    assert (alone.rank, alone.size, alone.is_chief, alone.one_host) == (0, 1, True, True)


@pytest.mark.parametrize(
    ("environment", "scheme", "place", "hosts"),
    [
        (horovod(), "horovod", (2, 4, 0, 2), None),
        (horovod(DISTCNN_HOSTS="a:2,b:2"), "horovod", (2, 4, 0, 2), "aabb"),
        (horovod(1, 2, 1, 2), "horovod", (1, 2, 1, 2), "bb"),
        (tf_config(), "tf_config", (1, 2, 0, 1), "ab"),
        (tf_config(2, ("a:1", "b:1", "b:2")), "tf_config", (2, 3, 1, 2), "abb"),
        (tf_config(0, ("b:1",), chief=["a:1"]), "tf_config", (1, 2, 0, 1), "ab"),
        (tf_config(0, ("b:1",), "chief", chief=["a:1"]), "tf_config", (0, 2, 0, 1), "ab"),
        (slurm(), "slurm", (2, 4, 0, 2), ("gpu1", "gpu1", "gpu2", "gpu2")),
        (slurm(2, 3, "n,m", "2,1", "m"), "slurm", (2, 3, 0, 1), "nnm"),
        (
            slurm(3, 5, "n[1-2],m", "2(x2),1", "n2"),
            "slurm",
            (3, 5, 1, 2),
            ("n1",) * 2 + ("n2",) * 2 + ("m",),
        ),
        (
            slurm(4, 5, "n[1-2],m", "2(x2),1", "m"),
            "slurm",
            (4, 5, 0, 1),
            ("n1",) * 2 + ("n2",) * 2 + ("m",),
        ),
        (slurm(0, 1, "n", "1", "n"), "slurm", (0, 1, 0, 1), "n"),
        (openmpi(), "openmpi", (1, 4, 1, 4), ("localhost",) * 4),
        (openmpi(local_rank=0, local_size=2), "openmpi", (1, 4, 0, 2), None),
        ({"PMI_RANK": "3", "PMI_SIZE": "4"}, "pmi", (3, 4, 3, 4), ("localhost",) * 4),
        (
            {"PMI_RANK": "3", "PMI_SIZE": "4", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2"},
            *("pmi", (3, 4, 1, 2), None),
        ),
        ({"JOB_COMPLETION_INDEX": "1", "DISTCNN_HOSTS": "p,q"}, "kubernetes", (1, 2, 0, 1), "pq"),
        (
            {"JOB_COMPLETION_INDEX": "3", "DISTCNN_HOSTS": "p-[0-1,5]-x.s, q:2"},
            *("kubernetes", (3, 5, 0, 2), ("p-0-x.s", "p-1-x.s", "p-5-x.s", "q", "q")),
        ),
        ({"JOB_COMPLETION_INDEX": "1", **tf_config()}, "tf_config", (1, 2, 0, 1), "ab"),
    ],
)
def test_every_launcher(environment, scheme, place, hosts):
    found = find_cluster(environment)
    assert found.scheme == scheme
    assert (found.rank, found.size, found.local_rank, found.local_size) == place
    assert found.hosts == (None if hosts is None else tuple(hosts))


@pytest.mark.parametrize(
    ("environment", "scheme"),
    [
        (horovod() | slurm(), "horovod"),
        (horovod() | slurm(0, 1, "n", "1", "n"), "horovod"),  # started by a task of one
        (tf_config(2, ("a:1", "b:1", "c:1", "d:1")) | slurm(), "tf_config"),
        (slurm() | {"PMI_RANK": "2", "PMI_SIZE": "4"}, "slurm"),
        # mpirun on three nodes starts a daemon on each of the other two, through srun
        (openmpi(5, 6, 1, 2) | slurm(1, 2, "n[2-3]", "1(x2)", "n3"), "openmpi"),
        (openmpi(2, 3, 0, 1) | slurm(0, 3, "n[1-3]", "1(x3)", "n1"), "openmpi"),
        ({"PMI_RANK": "5", "PMI_SIZE": "6"} | slurm(1, 3, "n[1-3]", "1(x3)", "n2"), "pmi"),
        (openmpi() | {"PMI_RANK": "1", "PMI_SIZE": "4"}, "openmpi"),
        (horovod() | {"JOB_COMPLETION_INDEX": "0"}, "horovod"),  # within a pod
        ({"JOB_COMPLETION_INDEX": "3", "DISTCNN_HOSTS": "localhost"}, "alone"),
    ],
)
def test_the_first_of_several_that_agree_decides(environment, scheme):
    assert find_cluster(environment).scheme == scheme


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        (
            horovod() | slurm(1, node="gpu1"),
            "horovod reports process 2 of 4, but slurm reports 1 of 4; unset the variables of the "
            "one that did not start this run (HOROVOD_RANK, HOROVOD_SIZE or SLURM_PROCID",
        ),
        (horovod() | tf_config(0, ("a:1",)), "tf_config reports 0 of 1"),
        (openmpi(5, 6, 1, 2) | slurm(), "slurm reports process 2 of 4, but openmpi reports 5 of 6"),
        (  # left over from an mpirun of one process, around srun
            openmpi(0, 1, 0, 1) | slurm(1, 2, "n[2-3]", "1(x2)", "n3"),
            "slurm reports process 1 of 2, but openmpi reports 0 of 1",
        ),
        (horovod(4), "HOROVOD_RANK is 4, but HOROVOD_SIZE is 4"),
        (horovod(local_size=5), "HOROVOD_LOCAL_SIZE is 5, but the whole run has 4 processes"),
        ({"HOROVOD_RANK": "1"}, "HOROVOD_SIZE is not set; expected a whole number"),
        (horovod("x"), "HOROVOD_RANK is 'x'"),
        (horovod(DISTCNN_HOSTS="a:4"), "this host is b, which is missing from DISTCNN_HOSTS"),
        (horovod(DISTCNN_HOSTS="b:2,a:2"), "places it on a; list the hosts in the order"),
        (horovod(DISTCNN_HOSTS="b:2"), "DISTCNN_HOSTS has 2 slots, but 4 processes"),
        (horovod(DISTCNN_HOSTS="b=2"), "DISTCNN_HOSTS is 'b=2'; expected host:slots"),
        *(
            (horovod(DISTCNN_HOSTS=text), f"DISTCNN_HOSTS is '{text}'; expected host:slots")
            for text in ("b[1", "b]", "b[x-y]", "b[3-1]", "b,,c", "b[]", "[0-1]:x")
        ),
        (tf_config(2), "lists 2 of them; this host is missing from the list"),
        (tf_config(0, ("a", "b")), "TF_CONFIG lists the addresses a, b; expected"),
        (tf_config(0, ("a:1", "a:1")), "TF_CONFIG lists an address twice"),
        (tf_config(0, ps=["c:1"]), "TF_CONFIG names the job ps; expected chief and worker only"),
        ({"TF_CONFIG": "{"}, "TF_CONFIG cannot be read (JSONDecodeError"),
        ({"TF_CONFIG": '{"cluster": {}}'}, "TF_CONFIG cannot be read (KeyError"),
        (slurm(node="gpu9"), "this host is gpu9 (SLURMD_NODENAME), which is missing from"),
        (slurm(node="gpu1"), "Slurm placed task 2 on gpu1; expected gpu2, the host in block"),
        (slurm(tasks="2"), "Slurm lists 2 nodes (SLURM_STEP_NODELIST) with [2] tasks"),
        (slurm(size=5), "but SLURM_STEP_NUM_TASKS is 5"),
        (openmpi(local_size=9), "OMPI_COMM_WORLD_LOCAL_SIZE is 9"),
        ({"JOB_COMPLETION_INDEX": "0"}, "set DISTCNN_HOSTS=pod-0.service,pod-1.service"),
        (
            {"JOB_COMPLETION_INDEX": "2", "DISTCNN_HOSTS": "p,q"},
            "JOB_COMPLETION_INDEX is 2, but DISTCNN_HOSTS lists 2 pods; this pod is missing",
        ),
    ],
)
def test_contradictions_are_refused_by_name(environment, message):
    with pytest.raises(ClusterError) as error:
        find_cluster(environment)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "nodes"),
    [
        ("n", ["n"]),
        ("n[01-03,7],m", ["n01", "n02", "n03", "n7", "m"]),
        ("r[1-2]n[8-9]x", ["r1n8x", "r1n9x", "r2n8x", "r2n9x"]),
        ("a,b[2]", ["a", "b2"]),
    ],
)
def test_node_lists(text, nodes):
    assert expand_nodelist(text) == nodes


def test_addresses_of_the_workers():
    assert find_cluster(tf_config()).worker_addresses(None) == ("a:1", "b:1")
    assert find_cluster(tf_config()).worker_addresses(500) == ("a:500", "b:500")
    listed = find_cluster(horovod(DISTCNN_HOSTS="a:2,b:2"))
    assert listed.worker_addresses(500) == ("a:500", "a:501", "b:500", "b:501")
    one_host = find_cluster(horovod(1, 2, 1, 2))
    assert one_host.worker_addresses(500) == ("127.0.0.1:500", "127.0.0.1:501")
    with pytest.raises(ClusterError, match="horovod does not provide the hosts"):
        find_cluster(horovod()).worker_addresses(500)


def test_ports_are_the_jobs_own():
    ports = {find_cluster(slurm(SLURM_JOB_ID=str(job))).port(None) for job in range(50)}
    assert len(ports) > 45
    assert all(10_000 <= port < 30_000 for port in ports)
    assert find_cluster(slurm(1, node="gpu1")).port(None) == find_cluster(slurm()).port(None)


def test_an_empty_list_of_another_job_names_nobody():
    assert find_cluster(tf_config(1, ps=[], evaluator=[])).rank == 1
