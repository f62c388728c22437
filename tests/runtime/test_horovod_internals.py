"""The contract with Horovod's private parts."""

import shlex
import subprocess
import sys
import time
import urllib.request
from types import SimpleNamespace

import pytest

from distcnn.runtime import rank_process
from distcnn.runtime.horovod_internals import LauncherStore, guarded_remotely
from distcnn.runtime.rank_group import RemoteCommand
from tests.runtime.test_rendezvous_store import as_nobody, needs_root


def test_the_launcher_uses_its_store_in_these_ways():
    gloo_run = pytest.importorskip("horovod.runner.gloo_run")
    theirs = gloo_run.RendezvousServer
    for name in ("start", "init"):
        assert hasattr(theirs, name)
        assert hasattr(LauncherStore, name)
    store = LauncherStore(0)
    port = store.start(address="127.0.0.1")
    store.init([SimpleNamespace(hostname="localhost")])
    address = f"http://127.0.0.1:{port}/global/0"
    request = urllib.request.Request(address, data=b"1", method="PUT")
    urllib.request.urlopen(request, timeout=5).close()
    with urllib.request.urlopen(address, timeout=5) as answer:
        assert answer.read() == b"1"


RANK = """
import os, pathlib, sys, time
folder = pathlib.Path(sys.argv[1])
if os.environ["HOROVOD_RANK"] == "0":
    (folder / "port.new").write_text(os.environ["HOROVOD_GLOO_RENDEZVOUS_PORT"])
    (folder / "port.new").rename(folder / "port")
while not (folder / "go").exists():
    time.sleep(0.1)
import horovod.tensorflow as hvd
hvd.init()
print("size", hvd.size())
"""


@needs_root
def test_another_user_cannot_disturb_the_launcher(tmp_path):
    """Plain `horovodrun` answers 200 to all of this, and its run then aborts."""
    pytest.importorskip("horovod.runner")
    ranks = [sys.executable, "-c", RANK, str(tmp_path)]
    command = [sys.executable, "-m", "distcnn.horovodrun", "--gloo", "-np", "2", *ranks]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 60
        while not (tmp_path / "port").exists():
            assert time.monotonic() < deadline
            time.sleep(0.1)
        requests = [("PUT", f"/global/{key}", "wrong") for key in ("0", "1", "rank_0")]
        port = int((tmp_path / "port").read_text())
        assert as_nobody(port, [*requests, ("GET", "/global/0", None)]) == [403] * 4
    finally:
        (tmp_path / "go").touch()
        output = launcher.communicate(timeout=120)[0].decode()
    assert launcher.returncode == 0, output
    assert output.count("size 2") == 2
    assert output.count("the start-up store refused a connection") == 1


@pytest.mark.parametrize("supervised", [False, True])
def test_a_rank_on_another_host_is_guarded_there(supervised):
    remote = pytest.importorskip("horovod.runner.util.remote")
    command = shlex.quote("cd /a > /dev/null 2>&1 ; env A='b c' HOROVOD_RANK=1 python x ; env y")
    make = guarded_remotely(remote.get_remote_command, supervised=supervised)
    line = make(command, host="b", port=22, identity_file=None)
    assert isinstance(line, RemoteCommand)
    *ssh, sent = shlex.split(line)
    assert ssh[0] == "ssh"
    assert ssh[-3:] == ["b", "-p", "22"]
    assert f"ServerAliveInterval={1 if supervised else 10}" in ssh
    guard = shlex.split(sent)
    assert guard[:3] == [sys.executable, "-I", rank_process.__file__]
    inner = "cd /a > /dev/null 2>&1 ; exec env A='b c' HOROVOD_RANK=1 python x ; env y"
    assert guard[3:] == [inner, "remote"]


def test_another_program_than_ssh_starts_its_command_as_it_is():
    make = guarded_remotely(lambda command, *_, **__: f"kubexec {command}", supervised=True)
    assert make("'cd /a ; env python x'", host="b") == "kubexec 'cd /a ; env python x'"
