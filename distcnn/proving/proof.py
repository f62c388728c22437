"""The proof: trains the first steps on one worker and on several, and compares them."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distcnn.distribute.launching import Process, horovodrun, one_process, unplaced_environment
from distcnn.errors import DistcnnError, UsageError
from distcnn.proving.comparison import TOLERANCES, Comparison, verdict
from distcnn.proving.record import Record
from distcnn.proving.subjects import Subject
from distcnn.runtime.finding import Finding


def prove_lockstep(workers: int, subject: Subject) -> Iterator[Finding]:
    """Trains the first steps on one worker and on several, and compares them.

    They compute in float64 if the model can, so that rounding does not hide or cause a difference.

    Args:
        workers: Number of Horovod workers.
        subject: What is trained.

    Yields:
        A finding for every variable and metric that differs, and the verdict.

    Raises:
        DistcnnError: If it fails on one worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        several = _Group(workers, subject, Path(folder))
        one = _Group(1, subject, Path(folder))
        alone, float_type = _train_alone(one, subject)
        try:
            own = Comparison(alone, several.train(float_type), float_type)
            synchronised = None
            if own.differing and own.several.normalises:
                found = several.train(float_type, sync_batchnorm=True)
                synchronised = Comparison(alone, found, float_type)
        except _FailedError as failed:
            yield Finding("lockstep", "error", f"{workers} workers fail: {failed}")
            return
        yield from verdict(own, synchronised, workers)


class _FailedError(Exception):
    """A process has failed.

    Args:
        reason: The last line of its error.
        code: Its exit code.
    """

    def __init__(self, reason: str, code: int) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True)
class _Group:
    """Starts the processes of a number of workers.

    Attributes:
        workers: Number of Horovod workers.
        subject: What is trained.
        folder: Where the records are kept.
    """

    workers: int
    subject: Subject
    folder: Path

    def __post_init__(self) -> None:
        """Checks that the launcher exists, before anything is trained."""
        self._process([])

    def train(self, float_type: str, *, sync_batchnorm: bool = False) -> Record:
        """Trains the first steps.

        Raises:
            _FailedError: If a process fails, or trains nothing.
        """
        out = self.folder / f"{self.workers}.npz"
        command = self.subject.command(out, float_type, sync_batchnorm=sync_batchnorm)
        line, variables = self._process([sys.executable, *command])
        done = subprocess.run(
            line, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise _FailedError(_reason(done), done.returncode)
        if not out.exists():
            raise _FailedError("it ended without calling fit", 0)
        found = Record.load(out)
        out.unlink()
        return found

    def _process(self, command: list[str]) -> Process:
        launch = one_process if self.workers == 1 else horovodrun
        own = {**self.subject.environment, "PYTHONHASHSEED": "0"}
        (process,) = launch(self.workers, command, {**unplaced_environment(), **own})
        return process


def _train_alone(one: _Group, subject: Subject) -> tuple[Record, str]:
    """Returns what one worker has trained, and the float type in which it could."""
    failed = _FailedError("", 1)
    for float_type in TOLERANCES:
        try:
            return one.train(float_type), float_type
        except _FailedError as error:
            failed = error
        if failed.code in (0, UsageError.exit_code):
            break
    kind = UsageError if failed.code == UsageError.exit_code else DistcnnError
    raise kind(f"{subject.name} fails on one worker: {failed}")


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [text.strip() for text in done.stderr.splitlines() if text.strip()]
    told = [text for text in lines if "error: " in text or "Error: " in text]
    reason = (told or lines or [f"exit code {done.returncode}"])[-1]
    return reason.removeprefix("error: ")
