"""The one place that uses attributes of Horovod which are not part of its public interface.

They were tried with Horovod 0.28.1; `tests/runtime/test_horovod_internals.py` checks them.
"""

import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from distcnn.runtime.rank_group import RankGroup
from distcnn.runtime.rendezvous_store import RendezvousServer


class LauncherStore:
    """The store of Horovod's launcher, with the interface of Horovod's `RendezvousServer`."""

    def __init__(self, verbose: int = 0) -> None:
        self._server: RendezvousServer | None = None

    def start(self, handler_cls: object = None, address: str = "") -> int:
        """Starts the store and returns its port; until `init`, only the own user is admitted."""
        self._server = RendezvousServer(address, 0, ())
        self._server.start()
        return self._server.server_port

    def init(self, host_alloc_plan: Sequence[Any]) -> None:
        """Serves the ranks of a plan, one `SlotInfo` each."""
        assert self._server is not None
        self._server.serve_hosts([slot.hostname for slot in host_alloc_plan])


def run_launcher() -> NoReturn:
    """Runs Horovod's launcher on the process's arguments, with this package's store and ranks.

    Raises:
        SystemExit: With the exit code of the rank that ended first with another one than 0; with
            130 if a second signal arrived before the run had saved.
    """
    from horovod.runner import gloo_run, launch
    from horovod.runner.common.util.safe_shell_exec import prefix_connection

    ranks = RankGroup(prefix_connection)
    gloo_run.RendezvousServer = LauncherStore
    gloo_run.register_shutdown_event = ranks.listen
    gloo_run.safe_shell_exec = ranks
    launch.gloo_built = lambda verbose=False: True  # as it always is; asking imports TensorFlow
    code = 0
    try:
        launch.run_commandline()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    line = ranks.last_line() if code else None
    if line is not None:
        sys.stderr.write(f"horovodrun: {line}\n")
    sys.exit(130 if code and len(ranks.signals) > 1 else code)
