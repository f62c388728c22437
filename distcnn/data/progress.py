"""A progress bar on stderr for work that takes long enough to want one."""

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
    """Shows how far a task is, if stderr is a terminal.

    Args:
        title: Text before the bar.
        total: Amount of work, or None if it is not known.
        delay: Seconds after which the bar appears.
        is_bytes: Whether the amount is counted in bytes.

    Yields:
        A function that takes the amount of work done since the last call.
    """
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn() if is_bytes else MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task(title, total=total)
    begin = time.monotonic()

    def advance(amount: int) -> None:
        bar.update(task, advance=amount)
        late = time.monotonic() - begin >= delay
        if late and not bar.live.is_started and sys.stderr.isatty():
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
