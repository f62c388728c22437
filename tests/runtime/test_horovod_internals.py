"""The contract with Horovod's private parts."""

import urllib.request

import pytest

from distcnn.distribute.launching import free_ports
from distcnn.runtime.horovod_internals import start_rendezvous_server


def test_the_server_listens_on_the_given_address_alone_and_keeps_reports():
    hosts = pytest.importorskip("horovod.runner.common.util.hosts")
    (port,) = free_ports(1)
    slot = hosts.SlotInfo(
        hostname="here", rank=0, local_rank=0, cross_rank=0, size=1, local_size=1, cross_size=1
    )
    server = start_rendezvous_server("127.0.0.1", port, [slot])
    try:
        assert server._httpd.server_address == ("127.0.0.1", port)
        report = f"http://127.0.0.1:{port}/started/0"
        request = urllib.request.Request(report, data=b"1", method="PUT")
        urllib.request.urlopen(request, timeout=5).close()
        with urllib.request.urlopen(report, timeout=5) as answer:
            assert answer.read() == b"1"
        with pytest.raises(OSError, match="in use"):
            start_rendezvous_server("127.0.0.1", port, [slot])
    finally:
        server._httpd.shutdown()
        server._httpd.server_close()
