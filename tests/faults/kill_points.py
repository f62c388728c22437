"""Kills a run before each of its file operations, and lets the same command finish it.

    python -m tests.faults.kill_points [--case NAME] [--points N] [--seed S] [--folder DIR]

A run is killed (SIGKILL) before its first, second, ... operation on a file of its run directory;
the same run is then started again and must end with the weights and the summary of one that was
never killed. The processes are forks of one parent that has imported TensorFlow. Prints a table.
"""

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

# Imported once, before the forks; nothing here starts TensorFlow's threads.
from distcnn.training.trainer import Trainer
from tests.runs import small_config

COMMON: dict[str, Any] = {"model__args": {"dropout": 0.0}, "data__synthetic_examples": 120}

CASES: dict[str, dict[str, Any]] = {
    "plain": {"train__epochs": 2},
    # The validation loss is lowest in the middle of the run.
    "early_stopping": {
        "train__epochs": 12,
        "train__early_stopping": 2,
        "optimizer__name": "sgd",
        "optimizer__lr": 1.5,
        "model__args": {"dropout": 0.9},
    },
    "ema": {"train__epochs": 3, "train__early_stopping": 1, "optimizer__ema": 0.9},
}

COMPARED = ("weights_sha256", "epochs", "saved_epoch", "steps", "val_loss", "val_accuracy")
"""What must not depend on the kill."""

_EVENTS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.truncate"}
_TIMEOUT_SECONDS = 300


class KillPoint:
    """Counts this process's operations on files in a folder, and kills it before one of them.

    Args:
        folder: Only operations below this folder count.
        number: Before which one to kill, counted from 1; 0 never kills.
    """

    def __init__(self, folder: Path, number: int) -> None:
        self._folder = str(folder)
        self._number = number
        self.count = 0

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Is called by the interpreter before each audited event."""
        if event not in _EVENTS or not arguments or not self._counts(event, arguments):
            return
        self.count += 1
        if self.count == self._number:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counts(self, event: str, arguments: tuple[Any, ...]) -> bool:
        path = arguments[0]
        if not isinstance(path, str | bytes | os.PathLike):
            return False
        if event == "open":
            mode, flags = arguments[1], arguments[2]
            reads = mode in ("r", "rb") if mode else not flags & (os.O_WRONLY | os.O_RDWR)
            if reads:
                return False
        return os.fsdecode(path).startswith(self._folder)


def in_fork(function: Callable[[], Any], out: Path) -> int:
    """Calls a function in a fork of this process, and returns its exit status.

    Args:
        function: What to call; what it returns is written to `out` as JSON.
        out: File for the result.

    Returns:
        0 if the function returned, minus the signal's number if one ended the process, else 1.
    """
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(_TIMEOUT_SECONDS)
            out.write_text(json.dumps(function()))
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def train(case: str, run: Path, kill_before: int) -> dict[str, Any]:
    """Trains a case; returns what its summary says and the number of file operations."""
    config = small_config(run, **COMMON | CASES[case])
    point = KillPoint(run, kill_before)
    sys.addaudithook(point)
    summary = Trainer(config).fit()
    assert summary is not None
    return {**{key: summary[key] for key in COMPARED}, "operations": point.count}


def survives(case: str, number: int, folder: Path, expected: dict[str, Any]) -> str | None:
    """Kills a run at a point and finishes it; returns what went wrong, or None."""
    run, result = folder / f"{case}-{number}", folder / f"{case}-{number}.json"
    if in_fork(lambda: train(case, run, number), result) != -signal.SIGKILL:
        return "the run was not killed"
    if (run / "summary.json").exists():  # the last operations come after it
        shutil.copyfile(run / "summary.json", result)
    elif in_fork(lambda: train(case, run, 0), result) != 0:
        return f"the same command failed (run directory {run})"
    found = json.loads(result.read_text())
    differing = [key for key in COMPARED if found[key] != expected[key]]
    if differing:
        return f"other {', '.join(differing)} (run directory {run})"
    shutil.rmtree(run)
    return None


def campaign(
    cases: Sequence[str], points: int | None, seed: int, folder: Path
) -> dict[str, dict[int, str | None]]:
    """Returns what went wrong at each point of each case.

    Args:
        cases: Names of `CASES`.
        points: Points per case, drawn at random; None for all.
        seed: Seed of the draw.
        folder: Where to train.
    """
    outcomes: dict[str, dict[int, str | None]] = {}
    for case in cases:
        reference = folder / f"{case}.json"
        status = in_fork(lambda case=case: train(case, folder / case, 0), reference)  # type: ignore[misc]
        assert status == 0, f"the uninterrupted run of {case} failed"
        expected = json.loads(reference.read_text())
        numbers = list(range(1, expected["operations"] + 1))
        if points is not None:
            numbers = sorted(random.Random(seed).sample(numbers, min(points, len(numbers))))
        outcomes[case] = {n: survives(case, n, folder, expected) for n in numbers}
        failed = {n: reason for n, reason in outcomes[case].items() if reason}
        print(f"{case:16} tried {len(numbers):4}  survived {len(numbers) - len(failed):4}")
        for number, reason in failed.items():
            print(f"{'':16} before operation {number}: {reason}")
    return outcomes


def main() -> int:
    """Runs the campaign of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--case", choices=tuple(CASES), action="append", help="Default: all.")
    parser.add_argument("--points", type=int, help="Points per case. Default: all.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="Where to train. Default: a temporary folder.")
    options = parser.parse_args()
    print(f"seed {options.seed}")
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-kill-points-"))
    outcomes = campaign(options.case or tuple(CASES), options.points, options.seed, folder)
    return int(any(reason for found in outcomes.values() for reason in found.values()))


if __name__ == "__main__":
    sys.exit(main())
