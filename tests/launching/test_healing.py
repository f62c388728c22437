"""Real runs that lose workers, their launcher and slots, and end with the same weights."""

import json
import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.launching.launched import OVERRIDES, LaunchedRun, still_running
from tests.lockstep.test_equality import TOLERANCE, difference
from tests.lockstep.test_failures import weights_of
from tests.runs import small_run


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run on one worker, in this process."""
    out = tmp_path_factory.mktemp("whole") / "run"
    small_run(out, **OVERRIDES)
    return out


@pytest.fixture(scope="module")
def healed(tmp_path_factory: pytest.TempPathFactory) -> LaunchedRun:
    """A run of three workers that was disturbed in every way, one after the other."""
    folder = tmp_path_factory.mktemp("healed")
    slots = folder / "slots"
    slots.write_text("localhost:3\n")
    own = ["--discover", f"cat {slots}", "--stall", "60"]
    notice = folder / "notice"
    copies: dict[str, Any] = {
        "checkpoint__memory_every_steps": 5,
        "checkpoint__every_epochs": 5,  # so that copies in memory are newer
        "checkpoint__notice": f"test -e {notice}",
    }
    with LaunchedRun(folder / "run", own, **copies) as killed:
        killed.wait_for_step(50)
        processes = killed.processes()
        assert len(killed.ranks()) == 3
        killed.process.kill()
        killed.process.wait()
        left = still_running(processes, 10)
        assert not left, left

    slots.write_text("localhost:2\n")
    # One worker must still train, however fast, when the slots of the others are found.
    slow = {"UNHURRIED": "0.04"}
    with LaunchedRun(folder / "run", own, environment=slow, **copies) as run:
        run.wait_for_step(killed.step() + 10)
        run.wait_until(run.has_new_copy)
        run.ranks()[1].send_signal(signal.SIGKILL)
        run.wait_until(lambda: len(run.restarts()) == 1)
        run.wait_until(run.has_new_copy)
        slots.write_text("localhost:1\n")
        run.ranks()[0].send_signal(signal.SIGSTOP)
        run.wait_until(lambda: len(run.restarts()) == 2)
        slots.write_text("localhost:3\n")
        run.wait_until(lambda: len(run.restarts()) == 3)
        notice.touch()
        run.wait_until(lambda: "a notice says that it will be taken away" in run.said())
        notice.unlink()
        assert run.wait() == 0, run.said()
    return run


def test_the_weights_are_those_of_the_uninterrupted_run(healed, uninterrupted):
    assert difference(weights_of(healed.out), weights_of(uninterrupted)) <= TOLERANCE
    summary = json.loads((healed.out / "summary.json").read_text())
    assert summary["world_size"] == 3
    assert summary["weights_agree"] is True


def test_every_restart_is_recorded(healed):
    killed, stopped, grown, moved = healed.restarts()
    assert (killed["rank"], killed["workers"]) == (1, 2)
    assert "SIGKILL" in killed["cause"]
    assert (stopped["rank"], stopped["workers"]) == (0, 1)
    assert "suspended" in stopped["cause"]
    for planned in (grown, moved):
        assert (planned["workers"], planned["steps_lost"]) == (3, 0)
    assert "(preemption)" in moved["cause"]
    for restart in (killed, stopped):
        assert restart["host"] == "localhost"
        assert restart["steps_lost"] == restart["step"] - restart["resumed_at"] <= 12
        seconds = restart["seconds"]
        assert seconds["detect"] < 10
        parts = sum(value for name, value in seconds.items() if name != "total")
        assert parts == pytest.approx(seconds["total"], abs=0.5)
    summary = json.loads((healed.out / "summary.json").read_text())
    assert summary["restarts"] == 4
    assert summary["steps_lost"] == killed["steps_lost"] + stopped["steps_lost"]
    said = healed.said()
    assert said.count("from the memory of") >= 2
    assert len(re.findall(r"training again at step \d+ with \d workers, ", said)) == 4


def test_each_rank_writes_a_file_and_rank_0_is_shown(healed):
    said = healed.said()
    assert "[0]<stdout>" not in said
    assert said.count("test accuracy") == 1
    files = {path.name for path in (healed.out / "launch").glob("rank-*.log")}
    assert files == {"rank-0.log", "rank-1.log", "rank-2.log"}
    assert "test accuracy" in (healed.out / "launch/rank-0.log").read_text()


@pytest.mark.parametrize(
    ("words", "code", "cause"),
    [
        (["train", "--train.epochs", "x"], 2, "train.epochs is 'x'; expected int"),
        (["run", "fails.py"], 1, "ValueError: there are no cats"),
    ],
)
def test_what_restarting_cannot_mend_ends_the_run_once(words, code, cause, tmp_path):
    text = "import keras\nkeras.Input((2,))\nraise ValueError('there are no cats')\n"
    (tmp_path / "fails.py").write_text(text)
    with LaunchedRun(tmp_path / "run", ["--workers", "2"], words) as run:
        assert run.wait() == code
    *_, shown, last = run.said().strip().splitlines()
    assert last.startswith("error: rank ")
    assert "restarting cannot mend that" in last
    assert cause in shown + last
    assert "restarting (" not in run.said()
