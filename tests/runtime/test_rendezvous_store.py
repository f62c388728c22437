"""Who may read and write the start-up store, and how much it holds."""

import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from http import HTTPStatus
from pathlib import Path

import pytest

from distcnn.distribute.launching import free_ports
from distcnn.runtime import peers
from distcnn.runtime.peers import PeerGuard, owner_of
from distcnn.runtime.rendezvous_store import BoundedStore, RendezvousServer

OPEN = urllib.request.build_opener(urllib.request.ProxyHandler({})).open


@pytest.fixture
def server() -> Iterator[RendezvousServer]:
    (port,) = free_ports(1)
    server = RendezvousServer("127.0.0.1", port, ("localhost",) * 2)
    server.start()
    yield server
    server.stop()


def ask(server: RendezvousServer, method: str, path: str, value: bytes | None = None) -> bytes:
    request = urllib.request.Request(
        f"http://127.0.0.1:{server.server_port}{path}", data=value, method=method
    )
    with OPEN(request, timeout=5) as answer:
        content: bytes = answer.read()
        return content


def code(server: RendezvousServer, method: str, path: str, value: bytes | None = None) -> int:
    """Returns the status of a refused request."""
    with pytest.raises(urllib.error.HTTPError) as error:
        ask(server, method, path, value)
    error.value.close()
    return error.value.code


def test_it_listens_on_the_given_address_alone_and_keeps_values(server):
    assert server.server_address == ("127.0.0.1", server.server_port)
    assert ask(server, "PUT", "/started/0", b"1") == b""
    assert ask(server, "GET", "/started/0") == b"1"
    assert code(server, "GET", "/started/1") == 404
    assert code(server, "GET", "/started") == 400
    with pytest.raises(OSError, match="in use"):
        RendezvousServer("127.0.0.1", server.server_port, ())


def test_a_value_is_written_once(server):
    ask(server, "PUT", "/global/0", b"first")
    ask(server, "PUT", "/global/0", b"first")  # Horovod's client repeats a request
    assert code(server, "PUT", "/global/0", b"second") == HTTPStatus.CONFLICT
    assert ask(server, "GET", "/global/0") == b"first"


def test_a_scope_is_free_again_once_all_its_ranks_are_connected(server):
    for scope in ("global", "local_localhost"):
        ask(server, "PUT", f"/{scope}/0", b"first")
        for key in ("0", "0", "7"):
            ask(server, "DELETE", f"/{scope}/{key}")
        assert ask(server, "GET", f"/{scope}/0") == b"first"
        ask(server, "DELETE", f"/{scope}/1")
        ask(server, "PUT", f"/{scope}/0", b"second")
        assert ask(server, "GET", f"/{scope}/0") == b"second"
    ask(server, "PUT", "/own/0", b"first")
    ask(server, "DELETE", "/own/0")
    assert code(server, "GET", "/own/0") == 404


def test_values_keys_and_their_sum_are_bounded(server):
    store = server.store
    too_large = code(server, "PUT", "/global/0", b"x" * (store.max_value + 1))
    assert too_large == HTTPStatus.REQUEST_ENTITY_TOO_LARGE
    for number in range(store.max_keys):
        assert store.put("s", str(number), b"") == HTTPStatus.OK
    assert store.put("s", "one more", b"") == HTTPStatus.INSUFFICIENT_STORAGE
    other = BoundedStore(("a", "b"))
    full = [other.put("s", str(n), b"x" * other.max_value) for n in range(33)]
    assert full == [HTTPStatus.OK] * 32 + [HTTPStatus.INSUFFICIENT_STORAGE]
    assert other.max_total < 200_000


def test_it_has_room_for_what_gloo_exchanges():
    """Measured with four ranks: 408 bytes in the largest value, 136 for each other rank."""
    for size in (2, 4, 64, 1024):
        store = BoundedStore(("a",) * size)
        assert store.max_value > 1.5 * 136 * size
        contexts, keys_of_a_rank = 6, 2
        assert store.max_keys > 2 * contexts * keys_of_a_rank * size
        assert store.max_total > 2 * contexts * size * 136 * size


def test_an_incomplete_value_is_not_kept(server):
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=10)
    connection.putrequest("PUT", "/global/0")
    connection.putheader("Content-Length", "many")
    connection.endheaders()
    assert connection.getresponse().status == HTTPStatus.LENGTH_REQUIRED
    connection.close()
    assert code(server, "GET", "/global/0") == 404


AS_NOBODY = """
import json, sys, urllib.error, urllib.request
base, results = sys.argv[1], []
for method, path, value in json.loads(sys.argv[2]):
    data = None if value is None else value.encode()
    request = urllib.request.Request(base + path, data=data, method=method)
    try:
        results.append(urllib.request.urlopen(request, timeout=5).status)
    except urllib.error.HTTPError as error:
        results.append(error.code)
print(json.dumps(results))
"""


def as_nobody(port: int, requests: list[tuple[str, str, str | None]]) -> list[int]:
    """Sends requests as the user nobody; returns their status codes."""
    python = next((p for p in ("/usr/bin/python3", sys.executable) if Path(p).exists()), "")
    command = ["runuser", "-u", "nobody", "--", python, "-c", AS_NOBODY]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}", json.dumps(requests)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={"PATH": os.environ["PATH"]},
    )
    if done.returncode != 0:
        pytest.skip(f"nobody cannot run Python: {done.stderr.strip()[-200:]}")
    codes: list[int] = json.loads(done.stdout)
    return codes


needs_root = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("runuser") is None, reason="needs root and runuser"
)


@needs_root
def test_another_user_of_this_host_can_neither_read_nor_write(server, caplog):
    ask(server, "PUT", "/global/0", b"address")
    requests = [
        ("GET", "/global/0", None),
        ("PUT", "/global/1", "wrong"),
        ("DELETE", "/global/0", None),
    ]
    assert as_nobody(server.server_port, requests) == [403] * 3
    assert code(server, "GET", "/global/1") == 404
    assert ask(server, "GET", "/global/0") == b"address"
    assert caplog.text.count("the start-up store refused a connection") == 1
    assert "not to user 0" in caplog.text


def test_a_closed_connection_belongs_to_nobody():
    import socket

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        own = listener.getsockname()
        client = socket.create_connection(own)
        served, peer = listener.accept()
        assert owner_of(peer, own) == os.geteuid()
        client.close()
        assert owner_of(peer, own) is None
        served.close()


def test_other_hosts_are_admitted_by_their_addresses(monkeypatch):
    import ipaddress

    names = {"one": "10.0.0.1", "two": "10.0.0.2", "far": "10.9.0.3"}

    def resolve(host: str, *args: object) -> list[tuple[object, ...]]:
        if host not in names:
            raise OSError("unknown")
        return [(None, None, None, None, (names[host], 0))]

    own = [ipaddress.IPv4Interface("127.0.0.1/8"), ipaddress.IPv4Interface("10.0.0.1/24")]
    monkeypatch.setattr(peers, "_interfaces", lambda: iter(own))
    monkeypatch.setattr("socket.getaddrinfo", resolve)
    monkeypatch.setattr(peers, "_RESOLVE_SECONDS", -1)

    def refused(guard: PeerGuard, address: str) -> bool:
        return guard.refusal((address, 1), ("10.0.0.1", 2)) is not None

    guard = PeerGuard("10.0.0.1", ("one", "one", "two"))
    assert not refused(guard, "10.0.0.2")
    assert refused(guard, "10.0.0.3")
    assert refused(guard, "10.0.0.1")  # this host, but no process has that connection
    guard = PeerGuard("10.0.0.1", ("one", "late"))
    names["late"] = "10.0.0.7"
    assert not refused(guard, "10.0.0.7")
    assert refused(guard, "10.0.0.8")
    guard = PeerGuard("10.0.0.1", ("one", "far"))  # has another address in this network
    assert not refused(guard, "10.9.0.3")
    assert not refused(guard, "10.0.0.8")
    assert refused(guard, "10.1.0.8")
