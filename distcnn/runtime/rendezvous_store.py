"""The HTTP store through which Horovod's processes exchange their addresses at the start.

It replaces Horovod's own, which answers everyone and keeps whatever it is sent (CVE-2024-10190).
The requests are those of Horovod's client: `GET`, `PUT` and `DELETE` of `/SCOPE/KEY`.
"""

import http.server
import logging
import socketserver
import sys
import threading
from collections import defaultdict
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast

from typing_extensions import override

from distcnn.runtime.peers import PeerGuard

log = logging.getLogger("distcnn")

_REQUEST_SECONDS = 3
"""How long a client may take to send one request."""


class BoundedStore:
    """Values by scope and key, each of which is written once.

    Every rank of a scope puts its own address to each other rank (136 bytes apiece) and the name of
    its host, then deletes its key when it is connected.

    Args:
        hosts: Host of each rank.

    Attributes:
        max_value: Largest value in bytes.
        max_keys: Largest number of keys.
        max_total: Largest sum of all values in bytes.
    """

    def __init__(self, hosts: Sequence[str]) -> None:
        size = len(hosts)
        self.max_value = 4096 + 256 * size
        self.max_keys = 256 + 64 * size
        self.max_total = self.max_value * 16 * size
        self._members = _members_by_scope(hosts)
        self._values: dict[tuple[str, str], bytes] = {}
        self._total = 0
        self._finished: dict[str, set[str]] = defaultdict(set)
        self._lock = threading.Lock()

    def get(self, scope: str, key: str) -> bytes | None:
        """Returns a value, or None if there is none."""
        with self._lock:
            return self._values.get((scope, key))

    def put(self, scope: str, key: str, value: bytes) -> HTTPStatus:
        """Keeps a value, unless a bound is exceeded or the key has another value."""
        with self._lock:
            present = self._values.get((scope, key))
            if present is not None:
                return HTTPStatus.OK if present == value else HTTPStatus.CONFLICT
            if len(value) > self.max_value:
                return HTTPStatus.REQUEST_ENTITY_TOO_LARGE
            if len(self._values) >= self.max_keys or self._total + len(value) > self.max_total:
                return HTTPStatus.INSUFFICIENT_STORAGE
            self._values[scope, key] = value
            self._total += len(value)
            return HTTPStatus.OK

    def finish(self, scope: str, key: str) -> None:
        """Notes that a rank is connected; forgets a scope of the run once all its ranks are.

        In other scopes, which Horovod's process sets add, the key alone is forgotten.
        """
        with self._lock:
            if scope not in self._members:
                self._total -= len(self._values.pop((scope, key), b""))
                return
            if key not in self._members[scope]:
                return
            self._finished[scope].add(key)
            if self._finished[scope] == self._members[scope]:
                del self._finished[scope]
                self._values = {k: v for k, v in self._values.items() if k[0] != scope}
                self._total = sum(map(len, self._values.values()))


def _members_by_scope(hosts: Sequence[str]) -> dict[str, set[str]]:
    """Returns the keys of the ranks in each of the three communicators of Horovod's controller."""
    counts = {host: hosts.count(host) for host in dict.fromkeys(hosts)}
    sizes = {"global": len(hosts)} | {f"local_{host}": n for host, n in counts.items()}
    for local_rank in range(max(counts.values(), default=0)):
        sizes[f"cross_{local_rank}"] = sum(n > local_rank for n in counts.values())
    return {scope: set(map(str, range(size))) for scope, size in sizes.items()}


class RendezvousServer(socketserver.ThreadingMixIn, http.server.HTTPServer):
    """Serves a store to the processes of one run.

    Args:
        address: IPv4 address to listen on.
        port: Port to listen on; 0 for any.
        hosts: Host of each rank.

    Raises:
        OSError: If it cannot listen there.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: str, port: int, hosts: Sequence[str]) -> None:
        self._address = address
        self._warned = False
        self.serve_hosts(hosts)
        super().__init__((address, port), _Handler)

    def serve_hosts(self, hosts: Sequence[str]) -> None:
        """Begins again with an empty store, for ranks on the given hosts."""
        self.store = BoundedStore(hosts)
        self.guard = PeerGuard(self._address, hosts)

    @override
    def server_bind(self) -> None:
        socketserver.TCPServer.server_bind(self)  # the base class looks up the host's name
        self.server_name, self.server_port = cast("tuple[str, int]", self.server_address)

    def start(self) -> None:
        """Serves in a thread, until `stop`."""
        threading.Thread(target=self.serve_forever, name="rendezvous", daemon=True).start()

    def stop(self) -> None:
        """Stops serving and closes the port."""
        self.shutdown()
        self.server_close()

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignores a client that hung up."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)

    def warn(self, reason: str) -> None:
        """Logs the first refused connection."""
        if not self._warned:
            self._warned = True
            log.warning("warning: the start-up store refused a connection: %s", reason)


class _Handler(http.server.BaseHTTPRequestHandler):
    timeout = _REQUEST_SECONDS
    server: RendezvousServer

    @override
    def parse_request(self) -> bool:
        if not super().parse_request():
            return False
        own = self.connection.getsockname()
        reason = self.server.guard.refusal(self.client_address, own)
        if reason is not None:
            self.server.warn(reason)
            self._answer(HTTPStatus.FORBIDDEN, reason=reason)
            return False
        if self.path.count("/") != 2:
            self._answer(HTTPStatus.BAD_REQUEST, reason="expected /SCOPE/KEY")
            return False
        return True

    def do_GET(self) -> None:
        value = self.server.store.get(*self._place())
        if value is None:
            self._answer(HTTPStatus.NOT_FOUND)
        else:
            self._answer(HTTPStatus.OK, value)

    def do_PUT(self) -> None:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._answer(HTTPStatus.LENGTH_REQUIRED)
        elif int(length) > self.server.store.max_value:
            self._answer(HTTPStatus.REQUEST_ENTITY_TOO_LARGE)
        else:
            value = self.rfile.read(int(length))
            complete = len(value) == int(length)
            self._answer(
                self.server.store.put(*self._place(), value) if complete else HTTPStatus.BAD_REQUEST
            )

    def do_DELETE(self) -> None:
        self.server.store.finish(*self._place())
        self._answer(HTTPStatus.OK)

    def _place(self) -> tuple[str, str]:
        _, scope, key = self.path.split("/")
        return scope, key

    def _answer(self, status: HTTPStatus, content: bytes = b"", reason: str | None = None) -> None:
        self.send_response(status, reason)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    @override
    def log_message(self, format: str, *args: Any) -> None:
        """Prints nothing."""
