"""Passes a run's metrics and results to the trackers that the configuration names."""

import contextlib
import importlib
import logging
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

from distcnn.config import Config
from distcnn.config.sections.logging import TRACKERS
from distcnn.runtime.files import parse_json, write_json
from distcnn.training.setup import TrainingSetup
from distcnn.training.tracking.confusion import draw_confusion
from distcnn.training.tracking.values import settings_of

log = logging.getLogger("distcnn")

FILE = "trackers.json"
"""What identifies the run to each tracker, so that a resumed one goes on as the same run."""

_ROOM = "distcnn.training.tracking"

_MODULES = {
    "csv": f"{_ROOM}.csv_file",
    "tensorboard": f"{_ROOM}.hparams",
    "mlflow": f"{_ROOM}.mlflow_run",
    "wandb": f"{_ROOM}.wandb_run",
}
"""The module of each tracker, which has a function `open_run`."""


class Tracker(Protocol):
    """One run in one tracker."""

    identity: str
    """What the tracker knows the run by; empty if nothing is needed."""

    def log(self, row: dict[str, Any]) -> None:
        """Takes a row of `metrics.jsonl`."""

    def finish(self, summary: dict[str, Any]) -> None:
        """Takes the summary of a finished run, whose directory is complete."""

    def close(self) -> None:
        """Lets go of the run, finished or not."""


class Trackers:
    """All trackers of a run.

    An error of a tracker does not end the training: it is reported once, and that tracker gets
    nothing more.

    Args:
        config: The configuration of the run.
        folder: The run directory.
    """

    def __init__(self, config: Config, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, Any] = _read(folder / FILE)
        self._trackers: dict[str, Tracker] = {}
        values = settings_of(config)
        for name in config.logging.tracker_names:
            self._open(name, values, config.logging.experiment)

    def _open(self, name: str, values: dict[str, Any], experiment: str) -> None:
        known = self._known.get(name, {})
        with self._guarding(name):
            module = importlib.import_module(_MODULES[name])
            tracker = module.open_run(self._folder, values, experiment, known.get("identity", ""))
            self._trackers[name] = tracker
            self._note(name, identity=tracker.identity)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for name, tracker in list(self._trackers.items()):
            with self._guarding(name):
                tracker.close()

    def log(self, row: dict[str, Any]) -> None:
        """Passes on a row, unless an earlier process of the run has done so."""
        for name, tracker in list(self._trackers.items()):
            if row["step"] > self._known[name].get("step", 0) or name == "csv":
                with self._guarding(name):
                    tracker.log(row)
                    self._note(name, step=row["step"])

    def finish(self, summary: dict[str, Any], setup: TrainingSetup | None = None) -> None:
        """Passes on the results.

        Args:
            summary: The content of `summary.json`.
            setup: The run, whose confusion matrix is drawn for trackers that keep pictures.
        """
        if setup is not None and {"mlflow", "wandb"} & set(self._trackers):
            draw_confusion(setup, self._folder)
        for name, tracker in list(self._trackers.items()):
            with self._guarding(name):
                tracker.finish(summary)

    def _note(self, name: str, **values: Any) -> None:
        self._known[name] = self._known.get(name, {}) | values
        write_json(self._folder / FILE, self._known)

    @contextlib.contextmanager
    def _guarding(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of a service that others run
            self._trackers.pop(name, None)
            reason = " ".join(str(error).split())[:300]
            log.warning(
                "warning: the tracker %s failed and gets nothing more of this run: %s: %s",
                name, type(error).__name__, reason,
            )  # fmt: skip


def _read(file: Path) -> dict[str, Any]:
    try:
        found = parse_json(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


assert set(_MODULES) == set(TRACKERS)
