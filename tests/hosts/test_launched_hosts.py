"""A launched run on two hosts that loses workers, hosts and the link between them."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.hosts.conftest import SEARCH, require
from tests.hosts.machines import ADDRESSES, PORT, Machines, two_hosts
from tests.launching.launched import OVERRIDES, LaunchedRun, still_running
from tests.launching.processes import everything_of, is_on, ranks_of
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.lockstep.test_failures import weights_of
from tests.runs import small_run

FIRST, SECOND = ADDRESSES
LONGER = {"train__epochs": 60}


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    require("ip", "sshd", "ssh", "ssh-keygen")
    with two_hosts(tmp_path_factory.mktemp("ssh")) as machines:
        yield machines


def launch(hosts: Machines, out: Path, own: list[str]) -> LaunchedRun:
    places = f"{ADDRESSES[FIRST]}:1,{ADDRESSES[SECOND]}:1"
    words = ["-H", places, "--ssh-port", PORT, "--ssh-key", str(hosts.key), *own]
    return LaunchedRun(
        out,
        words,
        prefix=["ip", "netns", "exec", FIRST],
        environment={"PATH": SEARCH},
        train__epochs=60,
    )


@pytest.fixture(scope="module")
def disturbed(hosts: Machines, tmp_path_factory: pytest.TempPathFactory) -> LaunchedRun:
    folder = tmp_path_factory.mktemp("disturbed")
    with launch(hosts, folder / "run", ["--stall", "60"]) as launched:
        disturb(launched, hosts)
    return launched


def disturb(launched: LaunchedRun, hosts: Machines) -> None:
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
    launched.wait_until(lambda: len(launched.restarts()) == 3)  # left out for 10 s

    before = [p for p in everything_of(launched.out) if is_on(p, SECOND)]
    hosts.set_link("down")
    assert not still_running(before, 12)
    launched.wait_until(lambda: len(launched.restarts()) == 4)
    hosts.set_link("up")
    launched.wait_until(lambda: len(launched.restarts()) == 5)
    assert launched.wait() == 0, launched.said()


def test_the_run_heals_and_ends_with_the_same_weights(disturbed, tmp_path):
    small_run(tmp_path / "whole", **OVERRIDES | LONGER)
    assert difference(weights_of(disturbed.out), weights_of(tmp_path / "whole")) <= TOLERANCE
    summary = json.loads((disturbed.out / "summary.json").read_text())
    assert (summary["world_size"], summary["restarts"]) == (2, 5)
    killed, stopped, back, cut, again = disturbed.restarts()
    for restart in (killed, stopped, cut):
        assert (restart["rank"], restart["host"]) == (1, ADDRESSES[SECOND])
    assert [r["workers"] for r in (killed, stopped, back, cut, again)] == [2, 1, 2, 1, 2]
    assert back["steps_lost"] == again["steps_lost"] == 0


def test_nothing_is_left_on_any_host_when_the_launcher_is_killed(hosts, tmp_path):
    with launch(hosts, tmp_path / "run", []) as launched:
        launched.wait_for_step(50)
        processes = everything_of(launched.out)
        assert len(ranks_of(launched.out)) == 2
        launched.process.kill()
        launched.wait()
        assert not still_running(processes, 10)
