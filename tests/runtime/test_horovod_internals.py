"""The contract with Horovod's private parts."""

import urllib.request
from types import SimpleNamespace

import pytest

from distcnn.runtime.horovod_internals import LauncherStore


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
