"""Horovod without its own launcher, on hosts with unequal numbers of processes."""

import json
import os
import subprocess
import sys
import time
import urllib.error

import pytest

from distcnn.distribute import rendezvous
from distcnn.errors import DistcnnError
from distcnn.runtime.cluster import Cluster
from tests.lockstep.groups import free_ports


def test_horovods_cross_communicator_has_the_hosts_with_that_local_rank():
    hosts = ("a", "a", "b", "c", "c", "c")
    assert [rendezvous._hosts_with(hosts, rank) for rank in range(3)] == [
        ["a", "b", "c"],
        ["a", "c"],
        ["c"],
    ]


@pytest.mark.parametrize(
    ("rank", "message"),
    [(0, "rank 1 did not register at 127.0.0.1"), (1, "rank 0 did not answer at 127.0.0.1")],
)
def test_a_missing_rank_is_named(rank, message, monkeypatch):
    monkeypatch.setattr(rendezvous, "_TIMEOUT_SECONDS", 0.5)
    workers = tuple(f"127.0.0.1:{port}" for port in free_ports(2))
    cluster = Cluster(
        scheme="tf_config",
        rank=rank,
        size=2,
        local_rank=rank,
        local_size=2,
        hosts=("127.0.0.1",) * 2,
        addresses=workers,
    )
    store = rendezvous.Rendezvous(cluster, None)
    with pytest.raises(DistcnnError) as error:
        store.open()
    if store._server is not None:
        store._server.stop()
    assert message in str(error.value)
    cause = error.value.__context__
    assert not isinstance(cause, urllib.error.HTTPError) or cause.closed


@pytest.mark.parametrize("strategy", ["horovod", "multi_worker"])
def test_two_and_one_process_find_each_other_though_one_starts_late(strategy):
    """Two names of this machine stand for two hosts."""
    first, second, third = free_ports(3)
    workers = [f"127.0.0.1:{first}", f"127.0.0.1:{second}", f"localhost:{third}"]
    command = [sys.executable, "-m", "distcnn.probe", "--distribute.strategy", strategy]
    processes = []
    for rank in (2, 0, 1):
        task = {"type": "worker", "index": rank}
        config = json.dumps({"cluster": {"worker": workers}, "task": task})
        processes.append(
            subprocess.Popen(
                command,
                env={**os.environ, "TF_CONFIG": config},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        )
        time.sleep(2)
    printed = [process.communicate(timeout=120)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0, 0], printed
    assert f"{strategy}: 3 workers reduce" in printed[1]
    assert "workers reduce" not in printed[0] + printed[2]
