"""Disturbs a launched run at random, and checks that it ends with the weights of one left alone.

    python -m tests.faults.healing [--faults N] [--seed S] [--hosts] [--folder DIR]

Three workers on this host; with --hosts, as root, on two hosts that are made for it: network
namespaces with an sshd of their own. Prints for each fault after how many seconds it was detected,
and training went on, and how many steps were lost.
"""

import argparse
import contextlib
import os
import random
import resource
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

from tests.hosts.conftest import SEARCH
from tests.hosts.machines import ADDRESSES, PORT, Machines, two_hosts
from tests.launching.launched import OVERRIDES, LaunchedRun
from tests.launching.processes import everything_of, is_on, ranks_of
from tests.lockstep.test_equality import difference
from tests.lockstep.test_failures import weights_of
from tests.runs import small_run

_MOST_SECONDS = 240
FIRST, SECOND = ADDRESSES


class Campaign:
    """A run, and what can be done to it.

    Args:
        folder: Where to work.
        seed: Of the random choices.
        epochs: The length of the run.
        machines: Two hosts; None for this one alone.
    """

    def __init__(self, folder: Path, seed: int, epochs: int, machines: Machines | None) -> None:
        self.random = random.Random(seed)
        self.machines = machines
        self.overrides: dict[str, Any] = {"train__epochs": epochs, "checkpoint__every_steps": 10}
        self._out = folder / "run"
        self.run = self.launch()

    def launch(self) -> LaunchedRun:
        """Starts the launcher."""
        own, prefix, environment = ["--workers", "3"], [], {}
        if self.machines is not None:
            own = ["-H", f"{ADDRESSES[FIRST]}:2,{ADDRESSES[SECOND]}:1", "--ssh-port", PORT]
            own += ["--ssh-key", str(self.machines.key)]
            prefix, environment = ["ip", "netns", "exec", FIRST], {"PATH": SEARCH}
        own += ["--stall", "60", "--restarts", "5"]
        return LaunchedRun(self._out, own, environment=environment, prefix=prefix, **self.overrides)

    def rank(self) -> psutil.Process:
        """Returns a rank."""
        ranks = ranks_of(self.run.out)
        return ranks[self.random.choice(sorted(ranks))]

    def all_of(self, host: str) -> list[psutil.Process]:
        """Returns what runs on a host."""
        if self.machines is None:
            return list(ranks_of(self.run.out).values())
        found = [p for p in everything_of(self.run.out) if is_on(p, host)]
        return [p for p in found if p.name() != "ssh"]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal to a rank."""
        self.rank().send_signal(number)

    def send_all(self, number: signal.Signals) -> None:
        """Sends a signal to everything on one host."""
        for process in self.all_of(SECOND):
            with contextlib.suppress(psutil.Error):
                process.send_signal(number)

    def exhaust(self) -> None:
        """Leaves a rank no memory."""
        limit = 1 << 20
        resource.prlimit(self.rank().pid, resource.RLIMIT_AS, (limit, limit))

    def kill_ranks_launcher(self) -> None:
        """Kills the process that started the ranks."""
        for process in psutil.Process(self.run.process.pid).children():
            if "distcnn.horovodrun" in process.cmdline():
                process.kill()

    def kill_launcher(self) -> None:
        """Kills the launcher, and starts it again."""
        self.run.process.kill()
        self.run.process.wait()
        self.run = self.launch()

    def kill_sessions(self) -> None:
        """Kills the ssh session of the other host's rank, at that host."""
        assert self.machines is not None
        for process in psutil.process_iter(["name"]):
            with contextlib.suppress(psutil.Error):
                parent = process.parent()
                inner = parent is not None and parent.name().startswith("sshd")
                if inner and process.name().startswith("sshd") and is_on(process, SECOND):
                    process.kill()

    def pull_cable(self) -> None:
        """Pulls the cable between the hosts for 20 seconds."""
        assert self.machines is not None
        self.machines.set_link("down")
        time.sleep(20)
        self.machines.set_link("up")

    def faults(self) -> dict[str, Callable[[], None]]:
        """Returns what can be done, by name."""
        here: dict[str, Callable[[], None]] = {
            "kill -9 of a rank": lambda: self.send(signal.SIGKILL),
            "kill -STOP of a rank": lambda: self.send(signal.SIGSTOP),
            "segmentation fault of a rank": lambda: self.send(signal.SIGSEGV),
            "no memory for a rank": self.exhaust,
            "SIGTERM to a rank": lambda: self.send(signal.SIGTERM),
            "kill -9 of a host's all": lambda: self.send_all(signal.SIGKILL),
            "kill -STOP of a host's all": lambda: self.send_all(signal.SIGSTOP),
            "kill -9 of the ranks' launcher": self.kill_ranks_launcher,
            "kill -9 of the launcher": self.kill_launcher,
        }
        if self.machines is None:
            return here
        return {
            **here,
            "kill -9 of an ssh session": self.kill_sessions,
            "link down": self.pull_cable,
        }


def disturb(campaign: Campaign, name: str, act: Callable[[], None]) -> str | None:
    """Does one thing to the run, and prints what came of it.

    Returns:
        What went wrong, or None.
    """
    before, reached = len(campaign.run.restarts()), campaign.run.step()
    began = time.time()
    act()
    launcher_killed = "of the launcher" in name
    while time.time() < began + _MOST_SECONDS:
        restarts = campaign.run.restarts()[before:]
        if launcher_killed and campaign.run.step() > reached:
            print(f"{name:32} {'':>10} {time.time() - began:10.1f} {'':>6}", flush=True)
            return None
        if restarts and "seconds" in restarts[-1] and not launcher_killed:
            first, last = restarts[0], restarts[-1]
            seconds = last["seconds"]
            stepped = last["seconds"]["total"] if first is last else time.time() - began
            lost = sum(restart.get("steps_lost", 0) for restart in restarts)
            print(
                f"{name:32} {seconds['detect']:10.1f} {stepped:10.1f} {lost:6} "
                f" {first['cause'][:60]}",
                flush=True,
            )
            return None
        if campaign.run.process.poll() is not None:
            code = campaign.run.process.returncode
            if code == 0:
                print(f"{name:32} the run ended before", flush=True)
                return None
            return f"{name}: the launcher ended with {code}: {campaign.run.said()[-1000:]}"
        time.sleep(0.1)
    if name.startswith("no memory"):
        print(f"{name:32} it needed none", flush=True)
        return None
    return f"{name}: nothing came of it in {_MOST_SECONDS} s: {campaign.run.said()[-1000:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # and stops the run
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-healing-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    print(f"seed {options.seed}, load {os.getloadavg()[0]:.1f}", flush=True)
    with _machines(folder) if options.hosts else contextlib.nullcontext() as machines:
        campaign = Campaign(folder, options.seed, 12 + 4 * options.faults, machines)
        try:
            failed = _run(campaign, options.faults)
        finally:
            campaign.run.__exit__()
    small_run(folder / "whole", **OVERRIDES | campaign.overrides)
    apart = difference(weights_of(campaign.run.out), weights_of(folder / "whole"))
    print(f"weights: {apart:.1e} from those of the uninterrupted run")
    for line in failed:
        print(line)
    return int(bool(failed) or not apart <= 1e-5)


@contextlib.contextmanager
def _machines(folder: Path) -> Iterator[Machines]:
    (folder / "ssh").mkdir()
    with two_hosts(folder / "ssh") as machines:
        yield machines


def _run(campaign: Campaign, count: int) -> list[str]:
    print(f"{'fault':32} {'detected':>10} {'stepping':>10} {'lost':>6}  cause", flush=True)
    failed: list[str] = []
    campaign.run.wait_for_step(20)
    for number in range(count):
        faults = campaign.faults()
        names = sorted(faults)
        # Each of them once, in a random order, before any comes a second time.
        if number % len(names) == 0:
            campaign.random.shuffle(names)
            order = names
        name = order[number % len(names)]
        problem = disturb(campaign, name, faults[name])
        failed += [problem] if problem else []
        if campaign.run.process.poll() is not None:
            break
        aim = campaign.run.step() + campaign.random.randrange(30, 80)
        with contextlib.suppress(AssertionError):
            campaign.run.wait_for_step(aim)
    code = campaign.run.wait(900)
    if code:
        failed.append(f"the launcher ended with {code}: {campaign.run.said()[-2000:]}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
