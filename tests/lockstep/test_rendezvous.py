"""Horovod where its own launcher did not start it: on hosts with unequal numbers of processes."""

import json
import os
import subprocess
import sys
import time

import pytest

from distcnn.distribute.rendezvous import _hosts_with
from tests.lockstep.groups import free_ports


def test_horovods_cross_communicator_has_the_hosts_with_that_local_rank():
    hosts = ("a", "a", "b", "c", "c", "c")
    assert [_hosts_with(hosts, rank) for rank in range(3)] == [["a", "b", "c"], ["a", "c"], ["c"]]


@pytest.mark.parametrize("strategy", ["horovod", "multi_worker"])
def test_two_and_one_process_find_each_other_though_one_comes_late(strategy):
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
