"""The benchmark between hosts that a slow link joins."""

import json
import math
import os
import subprocess
import sys

import pytest

from distcnn.benchmarking.link import linked_hosts
from distcnn.errors import UsageError
from tests.conftest import ROOT
from tests.hosts.conftest import require

SPEED = """
import json, os, socket, time
rank = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
host, port = json.loads(os.environ["TF_CONFIG"])["cluster"]["worker"][0].split(":")
if rank == 0:
    with socket.create_server((host, int(port))) as server:
        connection, _ = server.accept()
        received, start = 0, time.monotonic()
        while part := connection.recv(2**20):
            received += len(part)
    print(received * 8 / (time.monotonic() - start) / 1e6)
else:
    for _ in range(100):
        try:
            connection = socket.create_connection((host, int(port)))
            break
        except ConnectionRefusedError:
            time.sleep(0.1)
    connection.sendall(bytes(20_000_000))
"""

EXCHANGE = """
import json, os, pathlib, threading, time
import tensorflow as tf
from distcnn.distribute.horovod import Horovod
from distcnn.runtime.cluster import find_cluster
cluster = find_cluster(os.environ)
backend = Horovod(cluster, "none", None, shared_memory=False)
own = tf.zeros([2_000_000], tf.uint8)
splits = [0, 0]
splits[1 - cluster.rank] = 2_000_000
sent = pathlib.Path("/sys/class/net/eth0/statistics/tx_bytes")
seen = {}
for name, exchange in {
    "allgather": lambda: backend._hvd.allgather(own),
    "alltoall": lambda: backend._hvd.alltoall(own, splits=splits),
}.items():
    backend.barrier()
    start, seen[name], ended = int(sent.read_text()), [], threading.Event()
    def watch():
        while not ended.wait(0.01):
            seen[name].append((time.monotonic(), int(sent.read_text()) - start))
    watching = threading.Thread(target=watch)
    watching.start()
    time.sleep(0.3 * cluster.rank)
    exchange()
    ended.set()
    watching.join()
backend.barrier()
print(json.dumps(seen))
backend.close()
"""
"""Prints how many bytes this host has sent at which times, while both exchange two megabytes."""


def namespaces() -> str:
    listed = subprocess.run(["/usr/sbin/ip", "netns", "list"], capture_output=True, text=True)
    return listed.stdout


def test_a_link_has_its_speed_and_leaves_nothing_behind():
    require("ip", "tc")
    before = namespaces()
    with linked_hosts("200mbit", 2) as link:
        processes = [
            subprocess.Popen(line, env=environment, stdout=subprocess.PIPE, text=True)
            for line, environment in link.place(2, [sys.executable, "-c", SPEED], {})
        ]
        speed = float(processes[0].communicate(timeout=60)[0])
        processes[1].communicate(timeout=60)
    assert 20 < speed < 260  # Mbit/s; the first 512 KB pass at once, and a busy host is slower
    assert namespaces() == before


def test_what_is_not_a_speed_is_refused_by_name():
    with pytest.raises(UsageError, match="link is '1 gigabit'; expected a speed such as 1gbit"):
        linked_hosts("1 gigabit", 2).__enter__()


@pytest.mark.parametrize("strategy", ["horovod", "multi_worker"])
def test_a_benchmark_shows_what_overlap_saves(strategy, tmp_path):
    require("ip", "tc")
    done = subprocess.run(
        [
            *(sys.executable, "-m", "distcnn.benchmark", "--workers", "2", "--link", "100mbit"),
            *("--recipe", "quickstart", "--data.name", "synthetic", "--train.batch_size", "64"),
            *("--model.factory", "tests.tiny:tiny", "--precision.policy", "float32"),
            *("--scaling", "weak", "--steps", "10", "--warmup", "2", "--out", str(tmp_path)),
            *("--distribute.strategy", strategy, "--distribute.bucket_mb", "0.01"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "results.json").read_text())
    (row,) = results["rows"]
    assert results["link"] == "100mbit"
    assert 0 <= row["communication_share"] < 1
    assert 0 <= row["communication_share_at_once"] < 1
    assert 0 < row["communication_noise"] < 1
    assert "if gradients were reduced at once" in done.stdout


def test_a_rank_sends_while_it_receives():
    require("ip", "tc")
    pytest.importorskip("horovod")
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    with linked_hosts("20mbit", 2) as link:
        processes = [
            subprocess.Popen(line, env=own, stdout=subprocess.PIPE, text=True)
            for line, own in link.place(2, [sys.executable, "-c", EXCHANGE], environment)
        ]
        said = [json.loads(process.communicate(timeout=120)[0]) for process in processes]
    for name in ("allgather", "alltoall"):
        # When the first host has sent nearly all, the other one has sent a good part.
        first, other = sorted(
            (each[name] for each in said),
            key=lambda steps: next((when for when, sent in steps if sent > 1_900_000), math.inf),
        )
        then = next(when for when, sent in first if sent > 1_900_000)
        assert max(sent for when, sent in other if when <= then) > 300_000, name
