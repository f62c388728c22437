"""Runs the commands in forks, and checks how they end."""

import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from distcnn.cli.command import run_command
from tests.faults.campaign import in_fork

MOST_BYTES = 2 << 30
"""The most memory that a command may take, beyond that of its libraries."""


@dataclass(frozen=True)
class Ended:
    """How a command ended.

    Attributes:
        code: Its exit code, or minus the number of the signal that ended it.
        output: What it printed to its standard output.
        errors: What it printed to its standard error.
    """

    code: int
    output: str
    errors: str


def run(
    main: Callable[[Sequence[str]], int | None],
    *arguments: str,
    folder: Path,
    timeout: int = 120,
) -> Ended:
    """Runs a command's `main` as its process would, with bounded memory and time.

    Args:
        main: The function.
        *arguments: Its arguments.
        folder: Where to keep its output.
        timeout: Seconds after which it is ended by SIGALRM.
    """

    def command() -> None:
        signal.alarm(timeout)
        sys.argv = ["distcnn", *arguments]
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        # Threads reserve address space for their stacks and heaps, which they do not use.
        limit = used + MOST_BYTES + (8 << 30)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        run_command(main)

    files = [folder / f"{name}.txt" for name in ("unused", "output", "errors")]
    for path in files:
        path.unlink(missing_ok=True)
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    code = in_fork(command, files[0], timeout=timeout, printed=files[1], errors=files[2])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    errors = files[2].read_text(errors="replace")
    if peak > before and peak * 1024 > MOST_BYTES + _own_bytes():
        errors += f"\nit took {peak / 1e6:.1f} GB of memory"
        code = code or 137
    return Ended(code, files[1].read_text(errors="replace"), errors)


def _own_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def why_no_refusal(ended: Ended, *names: str) -> str | None:
    """Returns what is wrong with the end of a command that should print one error, or None.

    Args:
        ended: The end.
        *names: What the error must contain.
    """
    lines = ended.errors.rstrip().splitlines()
    last = lines[-1] if lines else ""
    if ended.code not in (1, 2):
        return f"it ended with {ended.code}: {last[-300:]}"
    if not last.startswith("error: ") or sum(line.startswith("error: ") for line in lines) != 1:
        return f"no single error at the end: {last[-300:]}"
    if "Traceback" in ended.errors or "(--debug shows where)" in last:
        return f"an error that is a defect: {last[-300:]}"
    return why_unprintable(ended) or next(
        (f"the error does not name {name}: {last[-300:]}" for name in names if name not in last),
        None,
    )


def why_unprintable(ended: Ended) -> str | None:
    """Returns that a command printed characters that a terminal obeys, or None."""
    found = re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f]", ended.output + ended.errors)
    return f"it printed the control character {found[0]!r}" if found else None
