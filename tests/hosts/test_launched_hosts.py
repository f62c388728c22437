"""A launched run on two hosts that loses workers, hosts and the link between them."""

import json
import os
import signal
from pathlib import Path

import psutil
import pytest

from tests.hosts.conftest import SEARCH
from tests.hosts.test_two_hosts import ADDRESSES, PORT, hosts, run
from tests.launching.launched import OVERRIDES, LaunchedRun, still_running
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.lockstep.test_failures import weights_of
from tests.runs import small_run

__all__ = ["hosts"]

FIRST, SECOND = ADDRESSES
LONGER = {"train__epochs": 30}


def ranks_of(out: Path) -> dict[int, psutil.Process]:
    """Returns the ranks of a run on all hosts, by rank."""
    found = {}
    for process in psutil.process_iter():
        try:
            is_rank = "DISTCNN_RANK_PAGE" in process.environ() and str(out) in " ".join(
                process.cmdline()
            )
            if is_rank and process.name().startswith("python"):
                found[int(process.environ()["HOROVOD_RANK"])] = process
        except psutil.Error:
            continue
    return found


def everything_of(out: Path) -> list[psutil.Process]:
    """Returns all processes of a run on all hosts: ranks, what guards them, and ssh."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and str(out) in " ".join(process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def link(state: str) -> None:
    run("ip", "-n", SECOND, "link", "set", "eth0", state)


def launch(key: Path, out: Path, own: list[str]) -> LaunchedRun:
    places = f"{ADDRESSES[FIRST]}:1,{ADDRESSES[SECOND]}:1"
    words = ["-H", places, "--ssh-port", PORT, "--ssh-key", str(key), *own]
    return LaunchedRun(
        out,
        words,
        prefix=["ip", "netns", "exec", FIRST],
        environment={"PATH": SEARCH},
        train__epochs=30,
    )


@pytest.fixture(scope="module")
def disturbed(hosts: Path, tmp_path_factory: pytest.TempPathFactory) -> LaunchedRun:
    folder = tmp_path_factory.mktemp("disturbed")
    with launch(hosts, folder / "run", ["--stall", "60"]) as launched:
        disturb(launched)
    return launched


def disturb(launched: LaunchedRun) -> None:
    """Loses a rank, a host's all and the link, one after the other."""
    launched.wait_for_step(50)
    assert len(ranks_of(launched.out)) == 2
    ranks_of(launched.out)[1].kill()
    launched.wait_until(lambda: len(launched.restarts()) == 1)

    for process in everything_of(launched.out):
        if process.name() != "ssh" and is_on(process, SECOND):
            process.send_signal(signal.SIGSTOP)
    launched.wait_until(lambda: len(launched.restarts()) == 2)
    assert all(p.status() != psutil.STATUS_STOPPED for p in everything_of(launched.out))

    before = [p for p in everything_of(launched.out) if is_on(p, SECOND)]
    link("down")
    assert not still_running(before, 12)
    launched.wait_until(lambda: len(launched.restarts()) == 3)
    link("up")
    launched.wait_until(lambda: len(launched.restarts()) == 4)
    assert launched.wait() == 0, launched.said()


def is_on(process: psutil.Process, host: str) -> bool:
    """Returns whether a process runs on a host, a network namespace."""
    try:
        mine = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
    except OSError:
        return False
    return mine == Path(f"/run/netns/{host}").stat().st_ino


def test_the_run_heals_and_ends_with_the_same_weights(disturbed, tmp_path):
    small_run(tmp_path / "whole", **OVERRIDES | LONGER)
    assert difference(weights_of(disturbed.out), weights_of(tmp_path / "whole")) <= TOLERANCE
    summary = json.loads((disturbed.out / "summary.json").read_text())
    assert (summary["world_size"], summary["restarts"]) == (2, 4)
    killed, _, cut, back = disturbed.restarts()
    assert (killed["rank"], killed["host"]) == (1, ADDRESSES[SECOND])
    assert (cut["rank"], cut["workers"]) == (1, 1)
    assert (back["workers"], back["steps_lost"]) == (2, 0)


def test_nothing_is_left_on_any_host_when_the_launcher_is_killed(hosts, tmp_path):
    with launch(hosts, tmp_path / "run", []) as launched:
        launched.wait_for_step(50)
        processes = everything_of(launched.out)
        assert len(ranks_of(launched.out)) == 2
        launched.process.kill()
        launched.wait()
        assert not still_running(processes, 10)
