"""Disturbs a launched run at random, and checks that it ends with the weights of one left alone.

    python -m tests.faults.healing [--faults N] [--seed S] [--hosts] [--folder DIR] [--json FILE]
    python -m tests.faults.healing --hosts --resize
    python -m tests.faults.healing --table FILE...

Three workers on this host; with --hosts, as root, on two hosts that are made for it: network
namespaces with an sshd of their own, and a small disk for the run directory. Prints for each fault
after how many seconds it was detected, and training went on, and how many steps were lost. With
--resize, the two hosts lose all workers but one, and get them back. --table sums several campaigns
up. The batches have 6 shards (virtual workers), so that the weights are the same to the last bit.
"""

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tests.faults.disks import Disk, mounted
from tests.faults.disturbances import Disturbance, Disturbances
from tests.faults.healing_table import print_table
from tests.faults.observing import Observer, Recovery
from tests.faults.steered import FOLDER_VARIABLE, HURRY
from tests.hosts.conftest import SEARCH
from tests.hosts.machines import ADDRESSES, PORT, Machines, two_hosts
from tests.launching.launched import OVERRIDES, LaunchedRun, still_running
from tests.launching.processes import everything_of, ranks_of
from tests.runs import small_run

FIRST, SECOND = ADDRESSES

_WORKERS = 3
_MOST_SECONDS = 150.0
_SETTLE_SECONDS = 90.0
_POLL_SECONDS = 0.1
_DISK_MEGABYTES = 64

_OVERRIDES: dict[str, Any] = OVERRIDES | {
    "data__synthetic_examples": 1200,  # 45 steps an epoch
    "model__factory": "tests.tiny:tiny",
    "train__global_batch_size": 24,
    "train__virtual_workers": 6,
    "train__callbacks": ["tests.faults.steered:Steered"],
    "checkpoint__every_steps": 5,
}


class Campaign:
    """A run, and what happens to it.

    Args:
        folder: Where to work; the run directory is on a disk of its own.
        epochs: The length of the run.
        seed: Of the random choices.
        machines: Two hosts; None for this one alone.
        disk: The disk; None for that of the folder.
    """

    def __init__(
        self, folder: Path, epochs: int, seed: int, machines: Machines | None, disk: Disk | None
    ) -> None:
        self.random = random.Random(seed)
        self.machines = machines
        self.out = (disk.folder if disk else folder) / "run"
        self.slots = folder / "slots"
        self.slots.write_text(self.places(2, 1))
        self._folder, self._epochs = folder, epochs
        self._disk = disk
        self.observer = Observer(self.out)
        for left in (folder / HURRY, folder / "launcher.txt", *folder.glob("hungry-*")):
            left.unlink(missing_ok=True)
        self.launch()

    def places(self, first: int, second: int) -> str:
        """Returns the hosts with a number of workers each, as a discovery script prints them."""
        if self.machines is None:
            return f"localhost:{first + second}\n"
        lines = [(ADDRESSES[FIRST], first), (ADDRESSES[SECOND], second)]
        return "".join(f"{address}:{workers}\n" for address, workers in lines if workers)

    def launch(self) -> None:
        """Starts the launcher."""
        own, prefix, environment = [], [], {FOLDER_VARIABLE: str(self._folder)}
        if self.machines is not None:
            own = ["--ssh-port", PORT, "--ssh-key", str(self.machines.key)]
            prefix, environment["PATH"] = ["ip", "netns", "exec", FIRST], SEARCH
        own += ["--discover", f"cat {self.slots}", "--stall", "60", "--restarts", "5"]
        self.run = LaunchedRun(
            self.out,
            own,
            environment=environment,
            prefix=prefix,
            log=self._folder / "launcher.txt",
            **_OVERRIDES | {"train__epochs": self._epochs},
        )

    def faults(self) -> dict[str, Disturbance]:
        """Returns what can happen, by name."""
        given = Disturbances(lambda: self.run, self.launch, self.random, self._folder)
        found = given.here()
        if self.machines is not None:
            found |= given.between(self.machines)
        if self._disk is not None:
            found |= given.on(self._disk)
        return found

    def settle(self, workers: int = _WORKERS, steps: int = 30) -> bool:
        """Waits until all workers train, and for some steps more; returns whether they do."""
        deadline = time.monotonic() + _SETTLE_SECONDS
        aim = None
        while time.monotonic() < deadline and self.run.process.poll() is None:
            if self.observer.training() != workers:
                aim = None
            elif aim is None:
                aim = self.observer.step() + steps
            elif self.observer.step() >= aim:
                return True
            time.sleep(_POLL_SECONDS)
        return False

    def disturb(self, name: str, disturbance: Disturbance) -> dict[str, Any] | str:
        """Lets something happen to the run.

        Returns:
            A row of the table, or what went wrong.
        """
        recovery = Recovery(self.observer, self.run)
        timer = disturbance.happen()
        try:
            while time.time() < recovery.began + _MOST_SECONDS:
                if recovery.look():
                    time.sleep(1)  # the launcher writes it down
                    return recovery.row(name, self.run, by_hand=disturbance.by_hand)
                if (code := self.run.process.poll()) is not None:
                    if code == 0:
                        return {"fault": name, "over": True}
                    return f"{name}: the launcher ended with {code}: {self.said()}"
                time.sleep(_POLL_SECONDS)
            return f"{name}: no step for {_MOST_SECONDS:g} s: {self.said()}"
        finally:
            timer.join()

    def finish(self) -> list[str]:
        """Lets the run end as fast as it can; returns what went wrong."""
        (self._folder / HURRY).touch()
        code = self.run.wait(400)
        left = still_running(everything_of(self.out), 10)
        failed = [f"these processes are left: {left}"] if left else []
        return failed + ([f"the launcher ended with {code}: {self.said()}"] if code else [])

    def said(self) -> str:
        """Returns the last lines of the launcher, without the progress of the training."""
        lines = [line for line in self.run.said().splitlines() if "epoch" not in line]
        return "\n".join(lines[-15:])


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the campaign; returns the exit code."""
    options = _options(arguments)
    if options.table:
        print_table(options.table)
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped by SIGTERM"))  # and stops the run
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-healing-"))
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    epochs = options.epochs or 10 + 4 * options.faults
    with contextlib.ExitStack() as stack:
        machines, disk = stack.enter_context(_hosts(folder)) if options.hosts else (None, None)
        campaign = Campaign(folder, epochs, options.seed, machines, disk)
        stack.callback(lambda: campaign.run.__exit__())
        print(f"seed {options.seed}, {epochs} epochs", flush=True)
        rows, failed = [], []
        for result in _resized(campaign) if options.resize else _disturbed(campaign, options):
            if isinstance(result, str):
                failed.append(result)
                print(result, flush=True)
                continue
            rows.append(result)
            if options.json:
                with options.json.open("a") as file:
                    file.write(json.dumps(result | {"seed": options.seed}) + "\n")
        if campaign.run.process.poll() is None or not failed:
            failed += campaign.finish()
        found = _summary(campaign.out)
        kept = folder / f"launch-{options.seed}"
        shutil.copytree(campaign.out / "launch", kept, dirs_exist_ok=True)
    return _compare(found, folder / f"whole-{epochs}", epochs, failed)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=10)
    parser.add_argument("--only", action="append", help="A part of the name of a fault.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--epochs", type=int, help="The length of the run.")
    parser.add_argument("--hosts", action="store_true")
    parser.add_argument("--resize", action="store_true", help="Loses workers and gets them back.")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="File to which a line for each fault is added.")
    parser.add_argument("--table", type=Path, nargs="+", help="Such files, to print as a table.")
    return parser.parse_args(arguments)


@contextlib.contextmanager
def _hosts(folder: Path) -> Iterator[tuple[Machines, Disk]]:
    with contextlib.ExitStack() as stack:
        disk = stack.enter_context(mounted(folder / "disk", _DISK_MEGABYTES))
        keys = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=folder)))
        yield stack.enter_context(two_hosts(keys)), disk


def _disturbed(campaign: Campaign, options: argparse.Namespace) -> Iterator[dict[str, Any] | str]:
    """Lets faults happen, one after the other, and yields what came of each."""
    print(f"{'fault':44} {'detected':>8} {'stepping':>8} {'lost':>4}  cause", flush=True)
    chosen = [n for n in campaign.faults() if not options.only or any(o in n for o in options.only)]
    order: list[str] = []
    for _ in range(options.faults):
        if not campaign.settle(steps=campaign.random.randrange(20, 50)):
            yield f"not all workers train after {_SETTLE_SECONDS:g} s: {campaign.said()}"
        if campaign.run.process.poll() is not None:
            return
        if not order:  # each of them once, in a random order, before any comes a second time
            order = campaign.random.sample(chosen, len(chosen))
        name = order.pop()
        result = campaign.disturb(name, campaign.faults()[name])
        if isinstance(result, dict):
            result["load"] = round(os.getloadavg()[0], 1)
            if "over" in result:
                yield f"{name}: the run was over before"
                return
            print(
                f"{name:44} {result['detected']:8.1f} {result['stepping']:8.1f} "
                f"{result['lost']:4}  {str(result['cause'])[:60]} (load {result['load']})",
                flush=True,
            )
        yield result


def _resized(campaign: Campaign) -> Iterator[dict[str, Any] | str]:
    """Takes all workers but one away, and gives them back."""
    if not campaign.settle():
        yield f"three workers did not train: {campaign.said()}"
        return
    for name, first, second in (("3 -> 1 workers", 1, 0), ("1 -> 3 workers", 2, 1)):
        before = len(campaign.run.restarts())
        campaign.slots.write_text(campaign.places(first, second))
        changed = time.time()
        if first + second == 1:
            ranks = ranks_of(campaign.out)
            for rank in (1, 2):
                ranks[rank].kill()
        if not campaign.settle(first + second):
            yield f"{name}: {campaign.said()}"
            return
        restart = campaign.run.restarts()[before]
        row = {"fault": name, "lost": restart["steps_lost"], "cause": restart["cause"]}
        row |= {"detected": round(restart["time"] - changed, 2), "seconds": restart["seconds"]}
        row["stepping"] = round(row["detected"] + _after_detection(restart["seconds"]), 2)
        print(f"{name}: {json.dumps(row)}", flush=True)
        yield row


def _after_detection(seconds: dict[str, float]) -> float:
    return seconds["total"] - seconds["detect"]


def _summary(out: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads((out / "summary.json").read_bytes())
    except FileNotFoundError:
        return {}
    return content


def _compare(found: dict[str, Any], whole: Path, epochs: int, failed: list[str]) -> int:
    """Compares the weights with those of a run that nothing happened to."""
    expected = _summary(whole) or small_run(whole, **_OVERRIDES | {"train__epochs": epochs})
    names = ("steps", "restarts", "restart_seconds", "steps_lost", "world_size")
    print(", ".join(f"{name} {found.get(name)}" for name in names))
    same = found.get("weights_sha256") == expected["weights_sha256"]
    print(f"weights_sha256 {found.get('weights_sha256')}: {'the same' if same else 'not the same'}")
    for line in failed:
        print(line)
    return int(bool(failed) or not same)


if __name__ == "__main__":
    sys.exit(main())
