"""What the campaigns share: their command line, their table, and forks of a warm parent.

A campaign is a module with `CASES`, functions by name. A case takes a `Campaign` and yields for
each fault that it tried what it did, as words that let somebody repeat it, and what went wrong, or
None if the fault was survived.
"""

import argparse
import contextlib
import functools
import json
import os
import random
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TIMEOUT_SECONDS = 300
_SHOWN = 20
"""The most failures of a case that are printed."""


class Skipped(Exception):  # noqa: N818 - no error
    """A case cannot be tried here; the message says what it needs."""


@dataclass(frozen=True)
class Campaign:
    """The part of a campaign that is one case.

    Attributes:
        case: Its name.
        points: The most faults to try; None for as many as the case finds fit.
        random: Random numbers from the seed and the name of the case.
        folder: An empty folder of its own.
    """

    case: str
    points: int | None
    random: random.Random
    folder: Path

    def sample(self, faults: Sequence[Any]) -> list[Any]:
        """Returns all faults, or `points` of them in the same order."""
        if self.points is None or self.points >= len(faults):
            return list(faults)
        return [faults[i] for i in sorted(self.random.sample(range(len(faults)), self.points))]

    def number(self, default: int) -> int:
        """Returns how many random faults to try."""
        return default if self.points is None else min(self.points, default)


Case = Callable[[Campaign], Iterator[tuple[str, str | None]]]


def run_case(name: str, case: Case, points: int | None, seed: int, folder: Path) -> bool:
    """Runs a case, prints its row of the table, and returns whether all faults were survived."""
    own = folder / name
    own.mkdir(parents=True)
    tried, failed = 0, []
    try:
        for fault, reason in case(Campaign(name, points, random.Random(f"{seed} {name}"), own)):
            tried += 1
            if reason is not None:
                failed.append(f"{fault}: {reason}")
    except Skipped as skipped:
        print(f"{name:20} skipped: {skipped}", flush=True)
        return True
    survived = tried - len(failed)
    print(f"{name:20} tried {tried:6}  survived {survived:6}  failed {len(failed):6}")
    for line in failed[:_SHOWN]:
        print(f"{'':20} {line}")
    if len(failed) > _SHOWN:
        print(f"{'':20} ... and {len(failed) - _SHOWN} more")
    sys.stdout.flush()
    return not failed and tried > 0


def main(description: str, cases: Mapping[str, Case]) -> int:
    """Runs the campaign of the command line.

    Args:
        description: The docstring of its module.
        cases: Its cases by name.

    Returns:
        The exit code: 1 if a fault was not survived, else 0.
    """
    parser = argparse.ArgumentParser(description=description.splitlines()[0])
    parser.add_argument("--case", choices=tuple(cases), action="append", help="Default: all.")
    parser.add_argument("--points", type=int, help="The most faults of a case. Default: all.")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="Where to work. Default: a temporary folder.")
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-faults-"))
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    return run_cases(
        {name: cases[name] for name in options.case or cases}, options.points, options.seed, folder
    )


def run_cases(cases: Mapping[str, Case], points: int | None, seed: int, folder: Path) -> int:
    """Runs cases, each in a fork so that none disturbs another, and returns the exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    code = 0
    for name, case in cases.items():
        result, errors = folder / f"{name}.json", folder / f"{name}.stderr"
        run = functools.partial(run_case, name, case, points, seed, folder)
        status = in_fork(run, result, timeout=0, errors=errors)
        if status != 0:
            print(f"{name:20} ended with {status}: {errors.read_text()[-2000:]}", flush=True)
        if status != 0 or not json.loads(result.read_text()):
            code = 1
    return code


def in_fork(
    function: Callable[[], Any],
    out: Path,
    *,
    timeout: int = _TIMEOUT_SECONDS,
    printed: Path | None = None,
    errors: Path | None = None,
) -> int:
    """Calls a function in a fork of this process, and returns its exit status.

    Args:
        function: What to call; what it returns is written to `out` as JSON.
        out: File for the result.
        timeout: Seconds after which the fork is killed by SIGALRM; 0 for never.
        printed: File for its standard output.
        errors: File for its standard error.

    Returns:
        0 if the function returned, minus the signal's number if one ended the process, the code
        that it exited with, else 1.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.alarm(timeout)
            for number, path in ((1, printed), (2, errors)):
                if path is not None:
                    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
                    os.dup2(descriptor, number)
            out.write_text(json.dumps(function()))
            code = 0
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        except BaseException:
            traceback.print_exc()
        finally:
            with contextlib.suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)
