"""The run directory: the configuration, environment, metrics and results of a run."""

import fcntl
import json
import logging
import os
import re
import secrets
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from distcnn.config.safe_yaml import read_yaml, sealed
from distcnn.config.schema import WHOLE_KEYS, Config
from distcnn.errors import DistcnnError
from distcnn.runtime.files import open_regular, parse_json, write_json, write_text
from distcnn.storage.checkpoint import Checkpoints, stored_mark
from distcnn.storage.metrics_file import METRICS_FILE, metrics_until
from distcnn.storage.mirror import Mirror

log = logging.getLogger("distcnn")

FREE_KEYS = (
    *("recipe", "out", "checkpoint", "logging", "data.cache", "precision.threads"),
    *("train.batch_size", "train.global_batch_size", "train.eval_batch_size"),
    *("distribute.strategy", "distribute.devices", "distribute.port"),
)
"""Keys and sections that may change when a run is resumed: they do not affect its result, as long
as the global batch is the same."""

_CHANGING_BITS = ("precision.threads", "train.eval_batch_size")
"""Those of them that change the order of sums, and with it the last bits of a result."""


_WHOLE = tuple(key.rpartition(".")[2] for key in WHOLE_KEYS)


class RunDirectory:
    """The folder of one run.

    Attributes:
        path: The folder; it may not exist yet.
        begun: Whether it contains an unfinished run of the same configuration.
        run_id: Tells the run from others that had this folder before; empty before `create`.
    """

    def __init__(self, path: Path, begun: bool) -> None:
        self.path = path
        self.begun = begun
        self.run_id = ""
        self._lock: int | None = None

    @classmethod
    def choose(cls, config: Config) -> Self:
        """Chooses the folder for a run: that of `--out`, or the next free `runs/RECIPE-N`.

        A folder with an unfinished run of the same configuration is chosen in order to resume that
        run. Nothing is written yet.

        Raises:
            DistcnnError: If the folder of `--out` contains a finished run, an unfinished run of
                another configuration, or other files.
        """
        if config.out is not None:
            path = Path(config.out)
            return cls(path, _admit(path, config))
        resume = config.checkpoint.resume != "never"
        number = 1
        while True:
            path = Path("runs", config.recipe if number == 1 else f"{config.recipe}-{number}")
            if not path.exists() or (resume and _obstacle(path, config) is None):
                return cls(path, _is_begun(path))
            number += 1

    def create(self, config: Config, environment: dict[str, Any]) -> None:
        """Creates and locks the folder, and writes `config.yaml` and `environment.json`.

        What was chosen is looked at again inside the lock, as another process may have trained
        there meanwhile: an unfinished run is resumed, a finished one is left alone.

        Raises:
            DistcnnError: If another process trains in it, its run was started with other images or
                another global batch, or it cannot be written.
        """
        try:
            self._take(config)
            self._require_same_course(environment)
            self.run_id = (read_run_id(self.path) if self.begun else "") or secrets.token_hex(8)
            write_json(self.path / "environment.json", {**environment, "run_id": self.run_id})
            write_text(self.path / "config.yaml", sealed(config.to_yaml()))
        except DistcnnError:
            self.close()
            raise
        except BlockingIOError:
            self.close()
            raise DistcnnError(
                f"another process is already training in {self.path}; wait for it, or choose "
                "another --out"
            ) from None
        except OSError as error:
            self.close()
            raise DistcnnError(
                f"the run directory {self.path} cannot be written: {error.strerror}; choose "
                "another --out"
            ) from None

    def _take(self, config: Config) -> None:
        """Locks the folder and checks it; if a default folder was taken, the next one is used.

        Raises:
            BlockingIOError: If another process holds the lock.
            DistcnnError: If the folder of `--out` cannot be used after all.
        """
        while True:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                self._fetch(config)
                self.begun = _admit(self.path, config)
                return
            except DistcnnError:
                self.close()
                if config.out is not None:
                    raise
            other = self.choose(config)
            self.path, self.begun = other.path, other.begun

    def _fetch(self, config: Config) -> None:
        """Takes the run from its mirror, if that is newer than what the folder has.

        Raises:
            DistcnnError: If the mirror cannot be read, or has another run.
        """
        address, resume = config.checkpoint.mirror, config.checkpoint.resume
        if address is None:
            return
        mirror = Mirror(address, self.path)
        if resume == "auto" or _is_begun(self.path):
            mirror.pull(read_run_id(self.path) if _is_begun(self.path) else "")
        else:
            mirror.require_empty()

    def require_present(self) -> None:
        """Checks that the folder is still the one that this run locked.

        Raises:
            DistcnnError: If it was deleted or replaced meanwhile.
        """
        if self._lock is None:
            return
        try:
            is_same = os.path.samestat(os.fstat(self._lock), (self.path / ".lock").stat())
        except OSError:
            is_same = False
        if not is_same:
            raise DistcnnError(
                f"the run directory {self.path} was deleted or replaced while the run wrote to it; "
                "nothing more can be saved there; start the run anew"
            )

    def _require_same_course(self, environment: dict[str, Any]) -> None:
        file = self.path / "environment.json"
        if not self.begun or not file.exists():
            return
        before, now = _read_resolved(file), environment["resolved"]
        images, batch = "training_images", "global_batch_size"
        if before[images] != now[images]:
            raise DistcnnError(
                f"{self.path} was started with {before[images]} training images, but this run "
                f"would use {now[images]}; restore the original images, choose another --out, or "
                "delete it"
            )
        content = "images_hash"
        if before[content] != now[content]:
            raise DistcnnError(
                f"{self.path} was started with other images: names, sizes, modification times or "
                "pixels have changed; restore the original images, choose another --out, or delete "
                "it"
            )
        if before[batch] != now[batch]:
            raise DistcnnError(
                f"{self.path} was started with a global batch of {before[batch]} images, but this "
                f"run would use {now[batch]}; pass the old number as --train.global_batch_size, "
                "choose another --out, or delete it"
            )

    def cut_metrics(self, step: int, copied: dict[str, Any] | None = None) -> list[dict[str, Any]]:
        """Removes the rows of `metrics.jsonl` after a step, from which the run is resumed.

        Args:
            step: Last global step to keep.
            copied: What belongs to a state that was copied at that step, from `metrics_mark`; None
                if the step has a checkpoint, or is the first one.

        Returns:
            The remaining rows.

        Raises:
            DistcnnError: If the file is damaged; it is left unchanged.
        """
        path = self.path / METRICS_FILE
        checkpoint = Checkpoints(self.path / "checkpoints", keep=1).path(step)
        rows: list[dict[str, Any]] = []
        is_resumed = copied is not None or checkpoint.exists()
        if is_resumed and path.exists():
            rows = self.read_metrics(copied or stored_mark(checkpoint))
        elif is_resumed:
            log.warning("warning: %s is missing; its rows up to step %d are lost", path, step)
        rows = [row for row in rows if row["step"] <= step]
        write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        return rows

    def read_metrics(self, mark: dict[str, Any] | None) -> list[dict[str, Any]]:
        """Reads the rows of `metrics.jsonl` that belong to a state.

        Args:
            mark: Their description, from `metrics_mark`; None for all rows.

        Raises:
            DistcnnError: If the file is damaged, or is not as it was then.
        """
        path = self.path / METRICS_FILE
        try:
            with open_regular(path) as file:
                return _parse_rows(metrics_until(mark, file.read()))
        except (OSError, ValueError) as error:
            raise DistcnnError(
                f"{path} is damaged ({error}); restore it, or delete it, which lets the run go "
                "on without its rows"
            ) from None

    def close(self) -> None:
        """Unlocks the folder for other processes."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _is_begun(path: Path) -> bool:
    return (path / "config.yaml").exists()


_BEGINNING = {
    *(".lock", "environment.json", "launch"),
    *(".partial-environment.json", ".partial-config.yaml"),
}
"""Entries of a run that was killed before it wrote `config.yaml`, the last file of its start;
`launch` is the folder of `distcnn.launch`."""


def _admit(path: Path, config: Config) -> bool:
    """Returns whether a folder contains an unfinished run that this configuration resumes.

    Raises:
        DistcnnError: If a run of this configuration cannot use the folder.
    """
    obstacle = _obstacle(path, config)
    if obstacle is not None:
        raise DistcnnError(obstacle)
    resume = config.checkpoint.resume
    if _is_begun(path) and resume == "never":
        raise DistcnnError(
            f"{path} holds an unfinished run, and checkpoint.resume {resume} would overwrite it; "
            "choose another --out, or delete it"
        )
    return _is_begun(path)


def read_run_id(path: Path) -> str:
    """Returns the id of the run in a folder; empty if there is none, or it cannot be read."""
    try:
        with open_regular(path / "environment.json") as content:
            run_id = parse_json(content.read())["run_id"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    is_id = isinstance(run_id, str) and re.fullmatch("[0-9a-f]{16}", run_id)
    return run_id if is_id else ""


_COURSE = ("training_images", "images_hash", "global_batch_size")
"""Resolved settings that must not change when a run is resumed."""


def _read_resolved(file: Path) -> dict[str, Any]:
    """Reads the resolved settings out of an `environment.json`.

    Raises:
        DistcnnError: If the file is damaged.
    """
    try:
        with open_regular(file) as content:
            resolved = parse_json(content.read())["resolved"]
        return {key: resolved[key] for key in _COURSE}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DistcnnError(_damaged(file, error)) from None


def _parse_rows(content: bytes) -> list[dict[str, Any]]:
    """Parses rows of metrics; a last one that was not written completely is left out.

    Raises:
        ValueError: Another one is damaged; the message is on one line.
    """
    rows = []
    complete, _, _ = content.rpartition(b"\n")
    for number, line in enumerate(complete.splitlines(), start=1):
        try:
            row = parse_json(line)
            if type(row["step"]) is not int or not {"epoch", "loss"} <= set(row):
                raise ValueError("expected step, epoch and loss")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"line {number}: {' '.join(str(error).split())[:200]}") from None
        rows.append(row)
    return rows


def _damaged(file: Path, error: Exception) -> str:
    reason = " ".join(str(error).split())[:200]
    return (
        f"{file} is damaged ({reason}); restore it, choose another --out, or delete {file.parent}"
    )


def _obstacle(path: Path, config: Config) -> str | None:
    """Returns why a run of this configuration cannot use the folder, or None if it can."""
    if not path.exists():
        return None
    if not path.is_dir():
        return f"{path} is a file; expected a folder for the run; choose another --out"
    if (path / "summary.json").exists():
        return f"{path} holds a finished run; choose another --out, or delete it"
    if not _is_begun(path):
        if all(entry.name in _BEGINNING for entry in path.iterdir()):
            return None
        return f"{path} holds files that are not a run; choose another --out"
    try:
        stored = read_yaml(path / "config.yaml")
    except ValueError as error:
        return _damaged(path / "config.yaml", error)
    exact = config.train.virtual_workers is not None
    free_keys = [key for key in FREE_KEYS if not (exact and key in _CHANGING_BITS)]
    differing = [
        f"{key} {old!r} -> {new!r}"
        for (key, new), (_, old) in zip(
            _flat(asdict(config)),
            _flat(_like(stored, asdict(config), asdict(Config()))),
            strict=True,
        )
        if old != new and not any(f"{key}.".startswith(f"{free}.") for free in free_keys)
    ]
    if not differing:
        return None
    return (
        f"{path} holds an unfinished run of another configuration ({', '.join(differing)}); "
        "finish it with the old values, choose another --out, or delete it"
    )


def _like(stored: Any, template: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Returns a stored configuration with exactly the keys of the current one.

    Keys that it does not have, as an earlier version wrote it, have their defaults.
    """
    stored = stored if isinstance(stored, dict) else {}
    return {
        key: _like(stored.get(key), value, defaults[key])
        if isinstance(value, dict) and key not in _WHOLE
        else stored.get(key, defaults[key])
        for key, value in template.items()
    }


def _flat(content: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in content.items():
        if isinstance(value, dict) and key not in _WHOLE:
            rows += _flat(value, f"{prefix}{key}.")
        else:
            rows.append((prefix + key, value))
    return rows
