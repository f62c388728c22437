"""Shows the run's progress on the terminal."""

import sys
import time
from typing import Any, Literal, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn
from rich.text import Text

from distcnn.runtime.text import duration
from distcnn.storage.metrics_file import MEASUREMENTS
from distcnn.training.callbacks.metrics import Row

Mode = Literal["auto", "live", "lines", "none"]


class ProgressDisplay:
    """A live progress bar on a terminal, otherwise one line per row.

    Use it as a context manager; call it with each row, and `advance` after each execution.

    Args:
        mode: How to show progress; auto means live on a terminal, lines elsewhere.
        epochs: Number of epochs in the run.
        steps_per_epoch: Number of steps in an epoch.
        first_step: Global step at which this process begins.
    """

    def __init__(self, mode: Mode, epochs: int, steps_per_epoch: int, first_step: int) -> None:
        self._console = Console(file=sys.stdout)
        live = self._console.is_terminal if mode == "auto" else mode == "live"
        self._quiet = mode == "none"
        self._epochs = epochs
        self._steps_per_epoch = steps_per_epoch
        self._total = epochs * steps_per_epoch
        self._step = self._first_step = first_step
        self._began = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.fields[epoch]}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total} steps"),
            TextColumn("{task.fields[left]}"),
            expand=True,
        )
        self._task = self._bar.add_task(
            "", total=steps_per_epoch, completed=first_step % steps_per_epoch, epoch="", left=""
        )
        self._latest = Text("compiling the first step ...", style="dim")
        self._live = Live(console=self._console, refresh_per_second=4, get_renderable=self._render)
        self._show_live = live and not self._quiet

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        if self._show_live:
            self._live.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._show_live:
            self._live.stop()

    def advance(self, step: int) -> None:
        """Records the number of global steps done."""
        self._step = step

    def __call__(self, row: Row) -> None:
        """Shows a row."""
        if self._quiet:
            return
        text = _describe(row, self._epochs)
        is_epoch = "val_loss" in row
        if self._show_live:
            self._latest = Text(text, style="dim")
            if is_epoch:
                self._live.console.print(Text(text))
                self._latest = Text("")
        else:
            step = f"step {row['step']:>6}/{self._total}  "
            self._console.print(Text(f"{step}{text}  {self._left()}"), soft_wrap=True)

    def _left(self) -> str:
        done = self._step - self._first_step
        if done == 0:
            return ""
        seconds = (time.monotonic() - self._began) / done * (self._total - self._step)
        return f"{duration(seconds)} left" if seconds >= 0.5 else "done"

    def _render(self) -> Any:
        epoch = min(self._step // self._steps_per_epoch, self._epochs - 1)
        self._bar.update(
            self._task,
            completed=self._step - epoch * self._steps_per_epoch,
            epoch=f"epoch {epoch + 1}/{self._epochs}",
            left=self._left(),
        )
        return Group(self._bar, self._latest)


def _describe(row: Row, epochs: int) -> str:
    parts = [f"epoch {row['epoch']:>2}/{epochs}"]
    metrics = ((k, v) for k, v in row.items() if k not in MEASUREMENTS)
    parts += [f"{name} {value:.4f}" for name, value in metrics if isinstance(value, float)]
    if row["images_per_second"] is not None:
        parts.append(f"{row['images_per_second']:.0f} images/s")
        parts.append(f"{row['step_ms']:.1f} ms/step")
        parts.append(f"input wait {row['input_wait']:.1%}")
    return "  ".join(parts)
