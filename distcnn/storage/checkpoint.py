"""Checkpoints: the whole state of a run in one file with a checksum, to go on from exactly."""

import json
import logging
import re
import shutil
import zipfile
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.errors import DistcnnError
from distcnn.runtime.files import file_digest, replacing, write_text

log = logging.getLogger("distcnn")

_NAME = re.compile(r"step-(\d{8,})\.npz")
_META = "meta"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Attributes:
        step: Global steps done.
        best_epoch: Epoch (counted from 0) of the lowest validation loss, or -1.
        best_loss: That loss, or infinity.
        train_seconds: Seconds of training so far, without compiling and validating.
        images: Images seen in that time.
    """

    step: int = 0
    best_epoch: int = -1
    best_loss: float = float("inf")
    train_seconds: float = 0.0
    images: int = 0

    def after_epoch(self, epoch: int, validation_loss: float | None) -> "Progress":
        """Returns the progress with the epoch's validation loss taken into account."""
        if validation_loss is None or not validation_loss < self.best_loss:
            return self
        return replace(self, best_epoch=epoch, best_loss=validation_loss)

    def out_of_patience(self, patience: int, epochs_done: int) -> bool:
        """Tells whether `patience` epochs passed without a better one; 0 is endless patience."""
        waited = epochs_done - 1 - self.best_epoch
        return patience > 0 and self.best_epoch >= 0 and waited >= patience


class Checkpoints:
    """The checkpoints in a run's folder `checkpoints/`.

    A checkpoint is a NumPy archive `step-NNNNNNNN.npz` beside a `.sha256` file in the format of
    `sha256sum`. `best.npz` is a copy (a link where possible) of the checkpoint of the best epoch.

    Args:
        folder: The folder; made when the first checkpoint is saved.
        keep: How many of the newest to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    @property
    def best(self) -> Path:
        """The checkpoint of the best epoch; it may not exist."""
        return self._folder / "best.npz"

    def newest_first(self) -> list[Path]:
        """Returns the checkpoints by falling step, without the best one's copy."""
        found = [p for p in self._folder.glob("step-*.npz") if _NAME.fullmatch(p.name)]
        return sorted(found, key=lambda p: int(p.stem.removeprefix("step-")), reverse=True)

    def save(self, arrays: dict[str, np.ndarray], progress: Progress, *, is_best: bool) -> Path:
        """Saves a state whole or not at all, then drops the checkpoints that are too old.

        Args:
            arrays: The state, by name.
            progress: How far the run is.
            is_best: Whether this is the best epoch so far.

        Returns:
            The file.

        Raises:
            DistcnnError: If the disk is full or cannot be written.
        """
        path = self._folder / f"step-{progress.step:08d}.npz"
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_checkpoint(path, arrays, progress)
            if is_best:
                _link(path, self.best)
            for old in self.newest_first()[self._keep :]:
                old.unlink()
                _checksum_file(old).unlink(missing_ok=True)
        except OSError as error:
            newest = self.newest_first()
            left = f"{newest[0]} is the last good one" if newest else "there is none yet"
            raise DistcnnError(
                f"the checkpoint {path} cannot be written: {error.strerror}; {left}; free some "
                "space and run the same command again"
            ) from None
        return path

    def load_newest(self) -> tuple[dict[str, np.ndarray], Progress] | None:
        """Loads the newest checkpoint that is whole; damaged ones are named and passed over."""
        for path in self.newest_first():
            try:
                return read_checkpoint(path)
            except DistcnnError as error:
                log.warning("warning: %s; going back to the checkpoint before it", error)
        return None


def write_checkpoint(path: Path, arrays: dict[str, np.ndarray], progress: Progress) -> None:
    """Writes one checkpoint and its checksum, each whole or not at all."""
    meta = np.frombuffer(json.dumps(asdict(progress)).encode(), np.uint8)
    with replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **{_META: meta}, **arrays)
        write_text(_checksum_file(path), f"{file_digest(partial)}  {path.name}\n")


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads one checkpoint.

    Raises:
        DistcnnError: If it is missing, damaged, or not a checkpoint.
    """
    try:
        expected = _checksum_file(path).read_text().split()[0]
        digest = file_digest(path)
    except (OSError, IndexError) as error:
        raise DistcnnError(f"the checkpoint {path} cannot be read: {error}") from None
    if digest != expected:
        raise DistcnnError(f"the checkpoint {path} is damaged: its checksum does not match")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        progress = Progress(**json.loads(arrays.pop(_META).tobytes()))
    except (ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise DistcnnError(f"{path} is not a checkpoint of distcnn: {error}") from None
    return arrays, progress


def find_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads the checkpoint that `--checkpoint.resume PATH` names: a file or a run directory.

    Raises:
        DistcnnError: If there is none.
    """
    if path.is_dir():
        found = Checkpoints(path / "checkpoints", keep=1).load_newest()
        if found is None:
            raise DistcnnError(f"checkpoint.resume is {path}, which holds no checkpoint")
        return found
    if not path.exists():
        raise DistcnnError(
            f"checkpoint.resume is {path}, which does not exist; expected auto, never, a run "
            "directory or a checkpoint file"
        )
    return read_checkpoint(path)


def snapshot(variables: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Copies variables to the host.

    Args:
        variables: Lists of variables by the name of their group.

    Returns:
        One array a variable, named `group/0000`.
    """
    return {
        f"{group}/{index:04d}": np.asarray(variable)
        for group, members in variables.items()
        for index, variable in enumerate(members)
    }


def restore(variables: dict[str, list[Any]], arrays: dict[str, np.ndarray], origin: str) -> None:
    """Assigns what `snapshot` copied.

    Args:
        variables: The same groups of variables.
        arrays: The saved arrays.
        origin: Where they come from, for messages.

    Raises:
        DistcnnError: If they are the state of another model or optimizer; nothing is then changed.
    """
    names = {
        f"{group}/{index:04d}": variable
        for group, members in variables.items()
        for index, variable in enumerate(members)
    }
    if set(names) != set(arrays):
        raise DistcnnError(
            f"{origin} holds {len(arrays)} variables, expected {len(names)}: it is the state of "
            "another model or optimizer; restore the configuration it was made with"
        )
    for name, variable in names.items():
        if tuple(variable.shape) != arrays[name].shape:
            label = getattr(variable, "path", name)
            raise DistcnnError(
                f"{origin} holds {label} with shape {arrays[name].shape}, expected "
                f"{tuple(variable.shape)}: it is the state of another model"
            )
    for name, variable in names.items():
        variable.assign(arrays[name])


def _checksum_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _link(path: Path, target: Path) -> None:
    temporary = target.with_name(f".{target.name}.new")
    temporary.unlink(missing_ok=True)
    try:
        temporary.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copyfile(path, temporary)
    digest = _checksum_file(path).read_text().split()[0]
    write_text(_checksum_file(target), f"{digest}  {target.name}\n")
    temporary.replace(target)
