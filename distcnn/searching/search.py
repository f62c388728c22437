"""Runs the trials of a search, several side by side."""

import contextlib
import fcntl
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from distcnn.config.safe_yaml import read_yaml
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.files import parse_json, write_text
from distcnn.searching.running import TrialRun, read_summary
from distcnn.searching.slots import Slot, divide_host
from distcnn.searching.space import Space
from distcnn.searching.study import Study

log = logging.getLogger("distcnn")

_POLL_SECONDS = 0.5
_MOST_FAILURES = 5
_USAGE = 2


@dataclass(frozen=True)
class Plan:
    """What a search does; it may not change when the search goes on.

    Attributes:
        recipe: The recipe that every trial starts from.
        flags: Further flags of every trial.
        space: What is varied, as it stands in the file.
        metric: A key of `summary.json` and of the last row of each epoch.
        pruner: One of `study.PRUNERS`.
        seed: Seed of the suggestions.
        workers: Workers of each trial.
        threads: Threads of each worker within one operation; None for the default.
    """

    recipe: str
    flags: list[str]
    space: dict[str, Any]
    metric: str
    pruner: str
    seed: int
    workers: int
    threads: int | None


class Search:
    """A search and its folder.

    Args:
        folder: The folder; an existing search of the same plan goes on there.
        plan: What the search does.
        space: What is varied.
        jobs: Trials side by side.

    Attributes:
        study: The trials.

    Raises:
        DistcnnError: If the folder holds something else, or another process searches there.
    """

    def __init__(self, folder: Path, plan: Plan, space: Space, jobs: int) -> None:
        self.folder, self.plan = folder, plan
        self._slots: list[Slot] = divide_host(jobs, plan.workers)
        self._running: dict[int, TrialRun] = {}
        self._pruned: set[int] = set()
        self._failures = 0
        self._stopping = False
        self._open()
        self.study = Study(folder, space, plan.metric, plan.pruner, plan.seed)

    def _open(self) -> None:
        file = self.folder / "search.yaml"
        if self.folder.exists() and not file.exists() and _entries(self.folder):
            raise DistcnnError(
                f"{self.folder} holds files that are no search; choose another --out"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise DistcnnError(
                f"another process is searching in {self.folder}; wait for it, or choose another "
                "--out"
            ) from None
        now = parse_json(json.dumps(asdict(self.plan)))
        if file.exists():
            differing = _differing(file, now)
        else:
            differing = ""
            write_text(file, yaml.safe_dump(now, sort_keys=False))
        if differing:
            self.close()
            raise DistcnnError(
                f"{self.folder} holds another search ({differing}); go on with the old values, or "
                "choose another --out"
            )
        for name in ("trials", "logs"):
            (self.folder / name).mkdir(exist_ok=True)

    def run(self, trials: int) -> bool:
        """Runs trials until there are as many as asked for, those of earlier calls included.

        Args:
            trials: How many.

        Returns:
            Whether it is done, rather than stopped by a signal.

        Raises:
            DistcnnError: If one trial after the other fails.
        """
        waiting = self.study.unfinished()
        with self._stop_on_signals():
            while True:
                self._poll()
                while not self._stopping and len(self._running) < len(self._slots):
                    if waiting:
                        self._start(waiting.pop(0))
                    elif len(self.study) < trials:
                        self._start(self.study.ask())
                    else:
                        break
                if not self._running:
                    return not self._stopping
                time.sleep(_POLL_SECONDS)

    @contextlib.contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        def stop(number: int, frame: object) -> None:
            self._stopping = True
            for run in self._running.values():
                run.stop()

        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for run in self._running.values():  # after an error
                run.stop()
            while any(run.exit_code() is None for run in self._running.values()):
                time.sleep(_POLL_SECONDS)
            for number, handler in before.items():
                signal.signal(number, handler)

    def close(self) -> None:
        """Lets other processes search in the folder."""
        os.close(self._lock)

    def trial_folder(self, number: int) -> Path:
        """Returns the run directory of a trial."""
        return self.folder / "trials" / f"{number:04d}"

    def _start(self, number: int) -> None:
        settings = self.study.settings(number)
        used = [run.slot for run in self._running.values()]
        slot = next(slot for slot in self._slots if all(slot is not each for each in used))
        folder = self.trial_folder(number)
        summary = read_summary(folder)
        if summary is not None:  # the search was killed before it noted that
            self._finish(number, summary)
            return
        words = " ".join(f"{key}={_shown(value)}" for key, value in settings.items())
        log.info("trial %d  %s  %s", number, "goes on" if folder.exists() else "starts", words)
        output = self.folder / "logs" / f"{number:04d}.log"
        self._running[number] = TrialRun(folder, self._command(folder, settings), output, slot)

    def _command(self, folder: Path, settings: dict[str, Any]) -> list[str]:
        plan = self.plan
        flags = ["--recipe", plan.recipe, *plan.flags, *flags_of(settings), "--out", str(folder)]
        if plan.threads is not None:
            flags.append(f"--precision.threads={plan.threads}")
        flags.append("--logging.progress=lines")
        if plan.workers == 1:
            return [sys.executable, "-m", "distcnn.train", *flags]
        launch = [sys.executable, "-m", "distcnn.launch", "--workers", str(plan.workers)]
        return [*launch, "train", *flags]

    def _poll(self) -> None:
        for number, run in list(self._running.items()):
            code = run.exit_code()  # before the metrics, which are then complete
            for epoch, value in run.new_values(self.plan.metric):
                stop = self.study.report(number, epoch, value)
                if stop and code is None and not self._stopping and number not in self._pruned:
                    self._pruned.add(number)
                    run.stop()
            if code is not None:
                del self._running[number]
                self._end(number, run, code)

    def _end(self, number: int, run: TrialRun, code: int) -> None:
        seconds = round(time.monotonic() - run.started, 1)
        summary = run.summary()
        if summary is not None:
            self._finish(number, summary, seconds=seconds)
        elif number in self._pruned:
            self.study.prune(number, seconds=seconds)
            log.info("trial %d  pruned", number)
        elif self._stopping:
            log.info("trial %d  stopped; the same command goes on with it", number)
        else:
            self._fail(number, run, code)

    def _finish(self, number: int, summary: dict[str, Any], **attributes: float) -> None:
        value, metric = summary.get(self.plan.metric), self.plan.metric
        if value is None:
            there = (key for key, value in summary.items() if value is not None)
            known = ", ".join(key for key in there if key.startswith(("val_", "test_")))
            raise UsageError(
                f"metric is {metric!r}, which the summary of trial {number} does not hold; "
                f"expected one of {known}"
            )
        if not math.isfinite(value):
            self.study.fail(number, f"{metric} is {value}")
            log.info("trial %d  failed: %s is %s", number, metric, value)
            return
        self._failures = 0
        self.study.finish(number, float(value), **attributes)
        best = self.study.best()
        assert best is not None
        assert best.value is not None
        log.info(
            "trial %d  %s %.4f  (best %.4f of trial %d)",
            number, metric, value, best.value, best.number,
        )  # fmt: skip

    def _fail(self, number: int, run: TrialRun, code: int) -> None:
        reason = run.last_line()
        self.study.fail(number, reason)
        log.info("trial %d  failed with exit code %d: %s", number, code, reason)
        self._failures += 1
        if code == _USAGE or self._failures >= _MOST_FAILURES:
            count = f"{self._failures} trials in a row" if code != _USAGE else f"trial {number}"
            raise DistcnnError(f"{count} failed, the last one with: {reason} (see {run.log})")

    def write_best(self) -> Path | None:
        """Writes the best trial's configuration as a recipe, and returns its path."""
        best = self.study.best()
        if best is None:
            return None
        folder = self.trial_folder(best.number)
        config = read_yaml(folder / "config.yaml")
        config.pop("out")
        if self.plan.workers > 1:  # the recipe trains the same with any number of workers
            config["distribute"]["strategy"] = "auto"
            summary = read_summary(folder) or {}
            config["train"]["global_batch_size"] = summary["global_batch_size"]
        path = self.folder / "best.yaml"
        lines = [
            f"# Trial {best.number}: {self.plan.metric} {best.value}",
            *(f"# {key}: {_shown(value)}" for key, value in best.settings.items()),
        ]
        write_text(path, "\n".join(lines) + "\n" + yaml.safe_dump(config, sort_keys=False))
        return path


def flags_of(settings: dict[str, Any]) -> list[str]:
    """Returns the flags that set some keys."""
    return [f"--{key}={_shown(value)}" for key, value in settings.items()]


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _entries(folder: Path) -> bool:
    return not folder.is_dir() or any(each.name != ".lock" for each in folder.iterdir())


def _differing(file: Path, now: dict[str, Any]) -> str:
    before = read_yaml(file)
    before = before if isinstance(before, dict) else {}
    return ", ".join(
        f"{key} {before.get(key)!r} -> {value!r}"
        for key, value in now.items()
        if before.get(key) != value
    )
