"""The folder of `--resume`: which script it belongs to, and the checkpoints of its `fit` calls."""

import fcntl
import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from distcnn.config import ScriptConfig
from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.runtime.files import parse_json, write_json
from distcnn.scripting.fit_state import from_chief
from distcnn.storage.checkpoint import Checkpoints, Progress

_DESCRIPTION = "script.json"
_LOCK = ".lock"
_LAUNCH = "launch"
"""The folder of `distcnn.launch`, which writes there before the run does."""
_KEPT = 2
"""Checkpoints kept of a fit in progress, in case the newest is damaged."""


@dataclass(frozen=True)
class ScriptIdentity:
    """What must be the same for a run to be resumed.

    Attributes:
        sha256: Checksum of the script's text.
        arguments: The script's own arguments.
        seed: The seed before the script's first line.
        policy: The precision policy.
        fast_path: Whether models may compute in their fast form.
        lr_scaling: How the learning rate grows with the workers.
        workers: The number of workers if each has the script's batch, else 0: any number.
        virtual_workers: The number of shards of a batch; None for one per worker.
    """

    sha256: str
    arguments: list[str]
    seed: int
    policy: str
    fast_path: str
    lr_scaling: str
    workers: int
    virtual_workers: int | None = None

    @classmethod
    def of(
        cls, script: Path, arguments: Sequence[str], config: ScriptConfig, workers: int
    ) -> "ScriptIdentity":
        """Returns the identity of a script and its arguments."""
        try:
            content = script.read_bytes()
        except OSError as error:
            raise UsageError(
                f"resume needs the text of the script, and {script} cannot be read: "
                f"{error.strerror}; run a script file"
            ) from None
        checksum = hashlib.sha256(content).hexdigest()
        return cls(
            sha256=checksum,
            arguments=list(arguments),
            seed=config.seed,
            policy=config.precision.policy,
            fast_path=config.fast_path,
            lr_scaling=config.lr_scaling,
            workers=workers if config.batch == "per_worker" else 0,
            virtual_workers=config.virtual_workers,
        )


class ResumeFolder:
    """The checkpoints of a script, one folder for each `fit` call.

    Args:
        path: The folder; created if it is missing.
        identity: The script.
        backend: Copies what the chief reads to the other ranks.
    """

    def __init__(self, path: Path, identity: ScriptIdentity, backend: Backend) -> None:
        self.path = path
        self._identity = identity
        self._backend = backend
        self._lock: int | None = None

    def open(self) -> None:
        """Creates and locks the folder; called in all processes together.

        Raises:
            UsageError: It belongs to another script or to something else, another process uses it,
                or it cannot be written.
        """
        self._backend.run_on_chief(self._open)

    def close(self) -> None:
        """Unlocks the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def load(self, number: int) -> tuple[dict[str, np.ndarray], int]:
        """Returns the newest intact checkpoint of a `fit` call in every process.

        Args:
            number: The call, counted from 0.

        Returns:
            Its arrays, none if there is no checkpoint, and its number.
        """
        found = self._checkpoints(number, _KEPT).load_newest() if self._backend.is_chief else None
        arrays, progress = found or ({}, Progress())
        return from_chief(arrays, self._backend), progress.step

    def prepare(
        self, number: int, arrays: dict[str, np.ndarray], serial: int, *, finished: bool
    ) -> Callable[[], object]:
        """Returns what saves a checkpoint of a `fit` call, in any thread; called on the chief.

        It raises a `DistcnnError` if the checkpoint cannot be written.

        Args:
            number: The call, counted from 0.
            arrays: The state.
            serial: The checkpoint's number, larger than that of any before.
            finished: Whether the call has ended, so that this is the only one to keep.
        """
        progress = Progress(step=serial, stopped=finished)
        return self._checkpoints(number, 1 if finished else _KEPT).prepare(arrays, progress)

    def _checkpoints(self, number: int, keep: int) -> Checkpoints:
        return Checkpoints(self.path / f"fit-{number:04d}", keep)

    def _open(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._require_same_script()
        except BlockingIOError:
            raise UsageError(
                f"resume is {self.path}, which another process is using; wait for it, or give "
                "another directory"
            ) from None
        except OSError as error:
            raise UsageError(
                f"resume is {self.path}, which cannot be written: {error.strerror}; give another "
                "directory"
            ) from None

    def _require_same_script(self) -> None:
        file = self.path / _DESCRIPTION
        now = asdict(self._identity)
        if not file.exists():
            if {path.name for path in self.path.iterdir()} - {_LOCK, _LAUNCH}:
                raise UsageError(
                    f"resume is {self.path}, which holds other files; expected a directory that "
                    "resume has created, an empty one or a new name"
                )
            write_json(file, now)
            return
        try:
            before = {"virtual_workers": None, **parse_json(file.read_bytes())}
            differs = [name for name, value in now.items() if before[name] != value]
        except (ValueError, LookupError, TypeError):
            raise UsageError(f"resume is {self.path}, whose {file.name} is damaged") from None
        if differs:
            words = {"sha256": "the script's text", "arguments": "the script's arguments"}
            what = ", ".join(words.get(name, name) for name in differs)
            raise UsageError(
                f"resume is {self.path}, which belongs to another run: {what} changed; only the "
                "number of workers may change; give another directory to start a new run"
            )
