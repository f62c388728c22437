"""The command that is launched, and the folder in which every attempt goes on."""

import contextlib
import fcntl
import hashlib
import os
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from distcnn.errors import UsageError
from distcnn.runtime.files import parse_json, write_json

COMMANDS = ("train", "run", "benchmark")

FOLDER = "launch"
"""The launcher's folder in the run directory."""

_STATE = "command.json"
_DEFAULT_RECIPE = "article"


@dataclass(frozen=True)
class Launched:
    """A command and its arguments.

    Attributes:
        name: train, run or benchmark.
        arguments: Its arguments.
        out: The run directory, or the directory of `--resume`; None if it keeps nothing.
    """

    name: str
    arguments: tuple[str, ...]
    out: Path | None = None

    @property
    def folder(self) -> Path:
        """The launcher's own folder."""
        return (self.out or Path("runs", self.name)) / FOLDER

    @property
    def token(self) -> str:
        """What all processes of this run have in common, and no other ones."""
        return hashlib.sha256(str(self.folder.resolve()).encode()).hexdigest()[:16]

    @property
    def own(self) -> tuple[str, ...]:
        """The arguments of the command itself, without those of a script."""
        return self.arguments[: self.script]

    @property
    def script(self) -> int:
        """The place of a script among the arguments; behind the last one if there is none."""
        places = (i for i, each in enumerate(self.arguments) if each.endswith(".py"))
        none = len(self.arguments)
        return next(places, none) if self.name == "run" else none

    @property
    def fixed_workers(self) -> bool:
        """Whether the number of workers may not change between attempts."""
        return self.name == "run" and value_of(self.own, "--batch") == "per_worker"

    def shards(self) -> int | None:
        """Returns the number of virtual workers, which that of the workers must divide, or None."""
        flag = "--virtual_workers" if self.name == "run" else "--train.virtual_workers"
        given = value_of(self.own, flag)
        if given is not None and given.isdigit():
            return int(given)
        resolved = _resolved(self.out).get("virtual_workers")  # as a recipe may say
        return resolved if isinstance(resolved, int) else None

    def notice(self) -> str | None:
        """Returns the command that tells whether a host is about to be taken away, or None."""
        flag = "--checkpoint_notice" if self.name == "run" else "--checkpoint.notice"
        return value_of(self.own, flag)

    def has_summary(self) -> bool:
        """Returns whether the directory holds a training run that has ended."""
        return self.out is not None and (self.out / "summary.json").exists()

    def line(self) -> list[str]:
        """Returns the command line of one worker."""
        return [sys.executable, "-m", f"distcnn.{self.name}", *self._complete()]

    def _complete(self) -> list[str]:
        """Returns the arguments with what all attempts must have in common."""
        own, rest = list(self.own), list(self.arguments[len(self.own) :])
        if self.name == "benchmark":
            return list(self.arguments)
        if value_of(own, "--distribute.strategy") is None:
            own += ["--distribute.strategy", "horovod"]
        if self.name == "run":
            return [
                *own,
                *([] if value_of(own, "--resume") else ["--resume", str(self.out)]),
                *rest,
            ]
        if value_of(own, "--out") is None:
            own += ["--out", str(self.out)]
        batch = begun_batch(self.out)
        if batch is not None:
            own += ["--train.global_batch_size", str(batch)]
        return own


def parse_command(words: Sequence[str]) -> Launched:
    """Parses the command to launch.

    Raises:
        UsageError: If it is none that can be launched.
    """
    expected = "expected train ARGUMENT..., run SCRIPT.py ARGUMENT... or benchmark ARGUMENT..."
    if not words or words[0] not in COMMANDS:
        received = words[0] if words else "missing"
        raise UsageError(f"the command to launch is {received}; {expected}")
    command = Launched(words[0], tuple(words[1:]))
    if command.name == "run" and not any(each.endswith(".py") for each in command.arguments):
        raise UsageError(f"run has no script, a file that ends in .py; {expected}")
    return command


def with_folder(command: Launched) -> Launched:
    """Returns the command with its directory: the given one, or one that no other run uses.

    The directory of an unfinished run of the same command is used again.
    """
    if command.name == "benchmark":
        return command
    flag, name = "--out", Path(value_of(command.arguments, "--recipe") or _DEFAULT_RECIPE).stem
    if command.name == "run":
        flag, name = "--resume", Path(command.arguments[command.script]).stem
    given = value_of(command.own, flag)
    if given is not None:
        return replace(command, out=Path(given))
    number = 1
    while True:
        out = Path("runs", name if number == 1 else f"{name}-{number}")
        chosen = replace(command, out=out)
        if not out.exists() or is_unfinished(chosen):
            return chosen
        number += 1


def is_unfinished(command: Launched) -> bool:
    """Returns whether the directory holds a run of the same command that has not ended."""
    state = _read(command.folder / _STATE)
    same = state.get("command") == [command.name, *command.arguments]
    return same and not state.get("finished")


@contextlib.contextmanager
def holding(command: Launched) -> Iterator[None]:
    """Keeps other launchers away from the directory during a context.

    Raises:
        UsageError: Another launcher uses it.
    """
    command.folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(command.folder / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(
                f"another launcher runs in {command.folder.parent}; wait for it, or choose another "
                "directory"
            ) from None
        yield
    finally:
        os.close(lock)


def keep_command(command: Launched, *, finished: bool) -> None:
    """Writes down which command uses the directory, and whether it has ended."""
    command.folder.mkdir(parents=True, exist_ok=True)
    content = {"command": [command.name, *command.arguments], "finished": finished}
    write_json(command.folder / _STATE, content)


def begun_batch(out: Path | None) -> int | None:
    """Returns the global batch of a run that has begun in a directory, or None."""
    batch = _resolved(out).get("global_batch_size")
    return batch if isinstance(batch, int) else None


def _resolved(out: Path | None) -> dict[str, Any]:
    """Returns the resolved settings of a run that has begun in a directory."""
    resolved = {} if out is None else _read(out / "environment.json").get("resolved")
    return resolved if isinstance(resolved, dict) else {}


def value_of(arguments: Sequence[str], flag: str) -> str | None:
    """Returns the last value of a flag among arguments, or None."""
    found = None
    for place, argument in enumerate(arguments):
        if argument == flag and place + 1 < len(arguments):
            found = arguments[place + 1]
        elif re.match(rf"{re.escape(flag)}=", argument):
            found = argument.partition("=")[2]
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
