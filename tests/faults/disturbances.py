"""What can happen to a launched run on two hosts, and how it ends."""

import contextlib
import resource
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import psutil

from tests.faults.disks import Disk
from tests.faults.steered import hungry
from tests.hosts.machines import ADDRESSES, Machines
from tests.launching.launched import LaunchedRun
from tests.launching.processes import everything_of, is_on, ranks_of

SECOND = list(ADDRESSES)[1]

_LINK_SECONDS = 20.0
_SSHD_SECONDS = 15.0
_DISK_SECONDS = 15.0
_LEFT_BYTES = 1 << 28
_STOP_SECONDS = 40.0


@dataclass(frozen=True)
class Disturbance:
    """Something that happens to a run.

    Attributes:
        act: Does it.
        undo: Ends what does not end by itself.
        seconds: How long after.
        by_hand: Whether it ends the launcher, which is then started again.
    """

    act: Callable[[], object]
    undo: Callable[[], object] = lambda: None
    seconds: float = 0.0
    by_hand: bool = False

    def happen(self) -> threading.Timer:
        """Lets it happen; returns what ends it."""
        self.act()
        timer = threading.Timer(self.seconds, self.undo)
        timer.start()
        return timer


class Disturbances:
    """What can happen to a run.

    Args:
        run: Returns the launched run.
        launch: Starts the launcher again.
        random: Chooses ranks.
        steering: The folder of `Steered`.
    """

    def __init__(
        self,
        run: Callable[[], LaunchedRun],
        launch: Callable[[], None],
        random: Random,
        steering: Path,
    ) -> None:
        self._run = run
        self._launch = launch
        self._random = random
        self._steering = steering

    def here(self) -> dict[str, Disturbance]:
        """Returns what can happen on any host, by name."""

        def signalled(number: signal.Signals) -> Disturbance:
            return Disturbance(lambda: self._choose()[1].send_signal(number))

        return {
            "`kill -9` of a rank": signalled(signal.SIGKILL),
            "`kill -STOP` of a rank": signalled(signal.SIGSTOP),
            "segmentation fault of a rank": signalled(signal.SIGSEGV),
            "SIGTERM to a rank": signalled(signal.SIGTERM),
            "a rank runs out of memory": Disturbance(self._exhaust),
            "`kill -9` of what started the ranks": Disturbance(self._kill_starter),
            "`kill -9` of the launcher, started again": Disturbance(
                lambda: self._end_launcher(signal.SIGKILL), by_hand=True
            ),
            "SIGTERM to the launcher, started again": Disturbance(
                lambda: self._end_launcher(signal.SIGTERM), by_hand=True
            ),
        }

    def between(self, machines: Machines) -> dict[str, Disturbance]:
        """Returns what can happen to the second of two hosts."""

        def to_all(number: signal.Signals) -> Disturbance:
            return Disturbance(lambda: _signal(self._all_there(), number))

        def to_servers(number: signal.Signals) -> Callable[[], None]:
            return lambda: _signal(machines.servers(SECOND), number)

        return {
            "`kill -9` of a host's all": to_all(signal.SIGKILL),
            "`kill -STOP` of a host's all": to_all(signal.SIGSTOP),
            "`kill -9` of sshd, back after 15 s": Disturbance(
                to_servers(signal.SIGKILL), lambda: machines.start_sshd(SECOND), _SSHD_SECONDS
            ),
            "`kill -STOP` of sshd for 15 s": Disturbance(
                to_servers(signal.SIGSTOP), to_servers(signal.SIGCONT), _SSHD_SECONDS
            ),
            "link down for 20 s": Disturbance(
                lambda: machines.set_link("down"), lambda: machines.set_link("up"), _LINK_SECONDS
            ),
        }

    @staticmethod
    def on(disk: Disk) -> dict[str, Disturbance]:
        """Returns what can happen to the disk of the run directory."""
        return {"disk full for 15 s": Disturbance(disk.fill, disk.free, _DISK_SECONDS)}

    def _choose(self) -> tuple[int, psutil.Process]:
        ranks = ranks_of(self._run().out)
        rank = self._random.choice(sorted(ranks))
        return rank, ranks[rank]

    def _all_there(self) -> list[psutil.Process]:
        found = [p for p in everything_of(self._run().out) if is_on(p, SECOND)]
        return [p for p in found if p.name() != "ssh"]

    def _exhaust(self) -> None:
        """Limits the memory of a rank (ulimit), and lets it take more."""
        rank, process = self._choose()
        limit = process.memory_info().vms + _LEFT_BYTES
        resource.prlimit(process.pid, resource.RLIMIT_AS, (limit, limit))
        (self._steering / hungry(rank)).touch()

    def _kill_starter(self) -> None:
        for process in psutil.Process(self._run().process.pid).children():
            if "distcnn.horovodrun" in process.cmdline():
                process.kill()

    def _end_launcher(self, number: signal.Signals) -> None:
        launcher = self._run().process
        launcher.send_signal(number)
        with contextlib.suppress(subprocess.TimeoutExpired):
            launcher.wait(_STOP_SECONDS)
        assert launcher.returncode in (-signal.SIGKILL, 75), self._run().said()[-2000:]
        self._launch()


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
