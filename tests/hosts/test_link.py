"""The benchmark between hosts that a slow link joins."""

import json
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
    assert "if gradients were reduced at once" in done.stdout
