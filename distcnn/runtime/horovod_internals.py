"""The one place that uses attributes of Horovod which are not part of its public interface.

They were tried with Horovod 0.28.1; `tests/runtime/test_horovod_internals.py` checks them.
"""

import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from distcnn.runtime import rank_process
from distcnn.runtime.rank_group import RankGroup, RemoteCommand
from distcnn.runtime.rendezvous_store import RendezvousServer
from distcnn.runtime.supervision import Supervision

_ALIVE = {
    True: "-o ServerAliveInterval=1 -o ServerAliveCountMax=4",
    False: "-o ServerAliveInterval=10 -o ServerAliveCountMax=3",
}
"""Options of ssh by which it ends some 5 seconds after the link to its host is down, or some 30 if
no supervisor will start the run again."""


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


def guarded_remotely(original: Callable[..., str], *, supervised: bool) -> Callable[..., str]:
    """Returns Horovod's `get_remote_command`, changed to run `rank_process` on the other host.

    So that a rank there is stopped, killed and reported as one here, and ends when ssh, the link
    or the launcher does. Other programs than ssh do not pass standard input on, and stay alone.
    """

    def get_remote_command(local_command: str, *arguments: Any, **keywords: Any) -> str:
        # It is `cd DIRECTORY ... ; env VARIABLE=... COMMAND`; the shell is replaced by `env`.
        (command,) = shlex.split(local_command)
        guard = [sys.executable, "-I", str(Path(rank_process.__file__))]
        inner = re.sub(r" ; env ", " ; exec env ", command, count=1)
        guarded = shlex.quote(shlex.join([*guard, inner, "remote"]))
        line = original(guarded, *arguments, **keywords)
        if not line.startswith("ssh "):
            return original(local_command, *arguments, **keywords)
        return RemoteCommand(line.replace("ssh ", f"ssh {_ALIVE[supervised]} ", 1))

    return get_remote_command


def run_launcher() -> NoReturn:
    """Runs Horovod's launcher on the process's arguments, with this package's store and ranks.

    Raises:
        SystemExit: With the exit code of the rank that ended first with another one than 0; with
            130 if a second signal arrived before the run had saved.
    """
    from horovod.runner import gloo_run, launch
    from horovod.runner.common.util.safe_shell_exec import prefix_connection

    supervision = Supervision.take(os.environ)
    ranks = RankGroup(prefix_connection, supervision)
    gloo_run.get_remote_command = guarded_remotely(
        gloo_run.get_remote_command, supervised=supervision is not None
    )
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
