"""The one place that uses attributes of Horovod which are not part of its public interface.

They were tried with Horovod 0.28.1; `tests/runtime/test_horovod_internals.py` checks them.
"""

from collections.abc import Sequence
from typing import Any


def start_rendezvous_server(address: str, port: int, plan: Sequence[Any]) -> Any:
    """Starts Horovod's rendezvous server on a single address.

    Horovod itself binds it to all interfaces, on which it answers everyone (CVE-2024-10190).

    Args:
        address: IP address to listen on.
        port: Port to listen on.
        plan: A `horovod.runner.common.util.hosts.SlotInfo` for each rank.

    Returns:
        The server, which runs as long as the object is kept.

    Raises:
        OSError: If it cannot listen there.
    """
    from horovod.runner.http import http_server

    server = http_server.RendezvousServer()
    server._httpd = http_server.RendezvousHTTPServer(
        (address, port), http_server.RendezvousHandler, False
    )
    server.init(list(plan))  # before the first report, since it clears the store
    server._listen_thread = http_server.in_thread(target=server._httpd.serve_forever)
    return server
