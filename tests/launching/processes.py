"""The processes of a launched run, on whichever host they are."""

import os
from collections.abc import Iterable
from pathlib import Path

import psutil

from distcnn.runtime.rank_process import FIELDS, LAYOUT, PAGE_VARIABLE

Page = dict[str, float]
"""What a rank says about itself; see `distcnn.runtime.rank_page`."""


def everything_of(out: Path) -> list[psutil.Process]:
    """Returns all processes of a run but the launcher: ranks, what guards them, and ssh."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            is_own = process.pid == os.getpid() or "distcnn.launch" in words
            if str(out) in " ".join(words) and not is_own:
                found.append(process)
        except psutil.Error:
            continue
    return found


def ranks_of(out: Path) -> dict[int, psutil.Process]:
    """Returns the ranks of a run, by rank."""
    return ranks_among(everything_of(out))


def ranks_among(processes: Iterable[psutil.Process]) -> dict[int, psutil.Process]:
    """Returns those of some processes that are ranks, by rank."""
    found = {}
    for process in processes:
        try:
            environment, name = process.environ(), process.name()
        except psutil.Error:
            continue
        if PAGE_VARIABLE in environment and name.startswith("python"):
            found[int(environment["HOROVOD_RANK"])] = process
    return found


def page_of(rank: psutil.Process) -> Page | None:
    """Returns what a rank says now, without asking its launcher; None if it has ended."""
    try:
        content = Path(f"/proc/{rank.pid}/fd/{rank.environ()[PAGE_VARIABLE]}").read_bytes()
    except (OSError, KeyError, psutil.Error):
        return None
    return dict(zip(FIELDS, LAYOUT.unpack(content), strict=True))


def is_on(process: psutil.Process, host: str) -> bool:
    """Returns whether a process runs on a host, a network namespace."""
    try:
        own = Path(f"/proc/{process.pid}/ns/net").stat().st_ino
    except OSError:
        return False
    return own == Path(f"/run/netns/{host}").stat().st_ino
