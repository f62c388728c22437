"""Kills a run before each of its file operations, and lets the same command finish it.

    python -m tests.faults.kill_points [--case NAME] [--points N] [--seed S] [--folder DIR]

A run is killed (SIGKILL) before its first, second, ... operation on a file of its run directory;
the same run is then started again and must end with the weights and the summary of one that was
never killed. The processes are forks of one parent that has imported TensorFlow. Prints a table.
"""

import functools
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from distcnn.training.trainer import Trainer
from tests.faults.campaign import Campaign, Case, in_fork, main
from tests.faults.kill_point import KillPoint
from tests.lockstep.groups import Group, start_group
from tests.runs import flags, small_config

COMMON: dict[str, Any] = {"model__args": {"dropout": 0.0}, "data__synthetic_examples": 120}

RUNS: dict[str, dict[str, Any]] = {
    "plain": {"train__epochs": 2},
    # The validation loss is lowest in the middle of the run.
    "early_stopping": {
        "train__epochs": 12,
        "train__early_stopping": 2,
        "optimizer__name": "sgd",
        "optimizer__lr": 1.5,
        "model__args": {"dropout": 0.9},
    },
    # Checkpoints take longer than epochs: training is two epochs on when the older one appears.
    "slow_disk": {"train__epochs": 5},
    "ema": {"train__epochs": 3, "train__early_stopping": 1, "optimizer__ema": 0.9},
}
"""Configurations by the name of their case."""

COMPARED = ("weights_sha256", "epochs", "saved_epoch", "steps", "val_loss", "val_accuracy")
"""What must not depend on the kill."""

_POINTS_OF_TWO_RANKS = 5


def train(name: str, run: Path, kill_before: int) -> dict[str, Any]:
    """Trains a run; returns what its summary says and the number of file operations."""
    config = small_config(run, **COMMON | RUNS[name])
    point = KillPoint(run, kill_before, 0.3 if name == "slow_disk" else 0)
    sys.addaudithook(point)
    summary = Trainer(config).fit()
    assert summary is not None
    return {**{key: summary[key] for key in COMPARED}, "operations": point.count}


def survives(name: str, number: int, folder: Path, expected: dict[str, Any]) -> str | None:
    """Kills a run at a point and finishes it; returns what went wrong, or None."""
    run, result = folder / f"{name}-{number}", folder / f"{name}-{number}.json"
    if in_fork(lambda: train(name, run, number), result) != -signal.SIGKILL:
        return "the run was not killed"
    if (run / "summary.json").exists():  # the last operations come after it
        shutil.copyfile(run / "summary.json", result)
    elif in_fork(lambda: train(name, run, 0), result) != 0:
        return f"the same command failed (run directory {run})"
    wrong = _difference(json.loads(result.read_text()), expected, run)
    if wrong is None:
        shutil.rmtree(run)
    return wrong


def one_rank(name: str, campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Kills a run of one process."""
    reference = campaign.folder / f"{name}.json"
    status = in_fork(lambda: train(name, campaign.folder / name, 0), reference)
    assert status == 0, f"the uninterrupted run of {name} failed"
    expected = json.loads(reference.read_text())
    for number in campaign.sample(range(1, expected["operations"] + 1)):
        reason = survives(name, number, campaign.folder, expected)
        yield f"before operation {number}", reason


def two_ranks(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Kills rank 0 of a run of two processes, each of which imports TensorFlow anew."""
    reference, operations = campaign.folder / "reference", campaign.folder / "operations"
    group = _run_two_ranks(reference, 0, operations)
    assert group.wait() == [0, 0], group.output()
    expected = json.loads((reference / "summary.json").read_text())
    points = range(1, int(operations.read_text()) + 1)
    for number in sorted(campaign.random.sample(points, campaign.number(_POINTS_OF_TWO_RANKS))):
        yield f"rank 0 before operation {number}", _survives_two(campaign.folder, number, expected)


def _survives_two(folder: Path, number: int, expected: dict[str, Any]) -> str | None:
    run = folder / f"run-{number}"
    killed, left = _run_two_ranks(run, number, folder / "unused").wait()
    if killed != -signal.SIGKILL:
        return f"rank 0 was not killed, but ended with {killed}"
    is_finished = (run / "summary.json").exists()  # the last operations come after it
    if left != 1 and not (is_finished and left == 0):
        return f"rank 1 ended with {left}; expected 1"
    if not is_finished:
        group = _run_two_ranks(run, 0, folder / "unused")
        if group.wait() != [0, 0]:
            return f"the same command failed (run directory {run}): {group.output()[-300:]}"
    return _difference(json.loads((run / "summary.json").read_text()), expected, run)


def _run_two_ranks(run: Path, kill_before: int, operations: Path) -> Group:
    config = small_config(run, **COMMON | RUNS["plain"] | {"distribute__strategy": "multi_worker"})
    arguments = ["-m", "tests.faults.killed_rank", str(kill_before), str(operations)]
    folder = Path(f"{run}-output-{kill_before}")
    return start_group("multi_worker", 2, [*arguments, *flags(config)], folder)


def _difference(found: dict[str, Any], expected: dict[str, Any], run: Path) -> str | None:
    differing = [key for key in COMPARED if found[key] != expected[key]]
    return f"other {', '.join(differing)} (run directory {run})" if differing else None


CASES: dict[str, Case] = {
    **{name: functools.partial(one_rank, name) for name in RUNS},
    "two_ranks": two_ranks,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
