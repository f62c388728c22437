"""A progress bar on stderr for long-running work."""

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)


@contextlib.contextmanager
def progress_bar(
    title: str, total: int | None, *, delay: float = 2.0, is_bytes: bool = False
) -> Iterator[Callable[[int], None]]:
    """Shows the progress of a task, if stderr is a terminal.

    Args:
        title: Text before the bar.
        total: Amount of work, or None if unknown.
        delay: Seconds after which the bar appears.
        is_bytes: Whether work is measured in bytes.

    Yields:
        A function to call with the amount of work done since the last call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if is_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=total)
    start = time.monotonic()

    def advance(amount: int) -> None:
        bar.update(task, advance=amount)
        is_due = time.monotonic() - start >= delay
        if is_due and not bar.live.is_started and sys.stderr.isatty():
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
