"""Checkpoints: the whole state of a run in one file with a checksum, for an exact resume."""

import json
import logging
import re
import zipfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.errors import DistcnnError
from distcnn.runtime.files import file_digest, open_regular, parse_json, replacing, write_text
from distcnn.storage.metrics_file import METRICS_FILE, metrics_mark

log = logging.getLogger("distcnn")

_NAME = re.compile(r"step-(\d{8,})\.npz")
_META = "meta"
_METRICS = "metrics"
_MAX_CHECKSUM_BYTES = 4096

NAMES = "names"
"""Name of the array that holds the paths of the variables."""

CALLBACKS = "callbacks/"
"""Start of the names of the arrays that hold the state of the user's callbacks."""


@dataclass(frozen=True)
class Progress:
    """The progress of a run.

    Attributes:
        step: Number of global steps completed.
        best_epoch: Epoch (counted from 0) with the lowest validation loss, or -1.
        best_loss: The lowest validation loss, or infinity.
        best_step: Global step at the end of that epoch, which names its checkpoint, or -1.
        stopped: Whether a callback ended the training at this step.
        steps_per_epoch: Steps of an epoch, in which `step` is counted.
        train_seconds: Seconds of training so far, excluding compilation and validation.
        images: Number of images trained on in that time.
    """

    step: int = 0
    best_epoch: int = -1
    best_loss: float = float("inf")
    best_step: int = -1
    stopped: bool = False
    steps_per_epoch: int = 0
    train_seconds: float = 0.0
    images: int = 0

    def after_epoch(self, epoch: int, step: int, validation_loss: float | None) -> "Progress":
        """Returns the progress, updated with the validation loss of an epoch.

        Args:
            epoch: The epoch, counted from 0.
            step: Global steps completed at its end.
            validation_loss: Its validation loss, or None.
        """
        if validation_loss is None or not validation_loss < self.best_loss:
            return self
        return replace(self, best_epoch=epoch, best_loss=validation_loss, best_step=step)

    def out_of_patience(self, patience: int, epochs_done: int) -> bool:
        """Returns whether the last `patience` epochs brought no improvement; never for 0."""
        epochs_since_best = epochs_done - 1 - self.best_epoch
        return patience > 0 and self.best_epoch >= 0 and epochs_since_best >= patience


class Checkpoints:
    """The checkpoints of a run, in its folder `checkpoints/`.

    A checkpoint is a NumPy archive `step-NNNNNNNN.npz` beside a `.sha256` file in the format of
    `sha256sum`. Its `Progress` says which step was the best so far, so that this fact and the state
    of the run appear together or not at all. It also has the checksum of the metrics so far. The
    checkpoint of the best step is kept, and so is the one that each kept checkpoint calls the best,
    in case the newest is damaged.

    Args:
        folder: The folder, which is created with the first checkpoint.
        keep: Number of most recent checkpoints to keep.
    """

    def __init__(self, folder: Path, keep: int) -> None:
        self._folder = folder
        self._keep = keep

    def path(self, step: int) -> Path:
        """Returns the file of the checkpoint at a step; it may not exist."""
        return self._folder / f"step-{step:08d}.npz"

    def newest_first(self) -> list[Path]:
        """Returns the checkpoint files in order of decreasing step."""
        paths = [p for p in self._folder.glob("step-*.npz") if _NAME.fullmatch(p.name)]
        return sorted(paths, key=lambda p: int(p.stem.removeprefix("step-")), reverse=True)

    def save(self, arrays: dict[str, np.ndarray], progress: Progress) -> Path:
        """Saves a state atomically, then deletes the checkpoints that are too old.

        Args:
            arrays: The state: arrays by name.
            progress: The progress of the run.

        Returns:
            The path of the checkpoint.

        Raises:
            DistcnnError: If the checkpoint cannot be written, for example because the disk is full.
        """
        return self.prepare(arrays, progress)()

    def prepare(self, arrays: dict[str, np.ndarray], progress: Progress) -> Callable[[], Path]:
        """Returns a function that does what `save` does, in any thread.

        The metrics that were written before this call belong to the checkpoint; those that are
        written until the function ends do not.
        """
        metrics = self._folder.parent / METRICS_FILE
        size = metrics.stat().st_size if metrics.is_file() else None
        return lambda: self._write(arrays, progress, size)

    def _write(
        self, arrays: dict[str, np.ndarray], progress: Progress, metrics_bytes: int | None
    ) -> Path:
        path = self.path(progress.step)
        try:
            self._folder.mkdir(exist_ok=True)  # not its parent, which somebody may have deleted
            mark = metrics_mark(self._folder.parent / METRICS_FILE, metrics_bytes)
            write_checkpoint(path, arrays, progress, mark)
            self._delete_old()
        except OSError as error:
            newest = self.newest_first()
            left = f"{newest[0]} is the last good one" if newest else "there is none yet"
            raise DistcnnError(
                f"the checkpoint {path} cannot be written: {error.strerror}; {left}; free some "
                "space and run the same command again"
            ) from None
        return path

    def _delete_old(self) -> None:
        newest = self.newest_first()
        kept = set(newest[: self._keep])
        kept |= {self.path(step) for path in kept if (step := _best_step(path)) is not None}
        for old in newest:
            if old not in kept:
                self.delete(old)

    def delete(self, path: Path) -> None:
        """Deletes a checkpoint and its checksum."""
        path.unlink()
        _checksum_file(path).unlink(missing_ok=True)

    def load_newest(self) -> tuple[dict[str, np.ndarray], Progress] | None:
        """Loads the newest intact checkpoint; damaged ones are skipped with a warning."""
        for path in self.newest_first():
            try:
                return read_checkpoint(path)
            except DistcnnError as error:
                log.warning("warning: %s; falling back to the previous checkpoint", error)
        return None


def write_checkpoint(
    path: Path,
    arrays: dict[str, np.ndarray],
    progress: Progress,
    mark: dict[str, Any] | None = None,
) -> None:
    """Writes a checkpoint and its checksum, each atomically.

    Args:
        path: The checkpoint.
        arrays: The state: arrays by name.
        progress: The progress of the run.
        mark: Which metrics belong to it, from `metrics_mark`; None if there are none.
    """
    described = {_META: asdict(progress)}
    if mark is not None:
        described[_METRICS] = mark
    own = {key: np.frombuffer(json.dumps(d).encode(), np.uint8) for key, d in described.items()}
    with replacing(path) as partial:
        np.savez(partial, allow_pickle=False, **own, **arrays)
        write_text(_checksum_file(path), f"{file_digest(partial)}  {path.name}\n")


def stored_mark(checkpoint: Path) -> dict[str, Any] | None:
    """Returns the `metrics_mark` in a checkpoint; None for one of an earlier version."""
    mark = _read_meta(checkpoint, _METRICS)
    return mark if isinstance(mark, dict) else None


def read_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads a checkpoint.

    Returns:
        The state, as arrays by name, and the progress of the run.

    Raises:
        DistcnnError: If the file is missing, damaged, or not a checkpoint.
    """
    try:
        with open_regular(_checksum_file(path)) as file:
            expected = file.read(_MAX_CHECKSUM_BYTES).decode().split()[0]
        digest = file_digest(path)
    except (OSError, IndexError, UnicodeDecodeError) as error:
        raise DistcnnError(f"the checkpoint {path} cannot be read: {error}") from None
    if digest != expected:
        raise DistcnnError(f"the checkpoint {path} is damaged: its checksum does not match")
    try:
        arrays = _read_archive(path)
        arrays.pop(_METRICS, None)
        meta = parse_json(arrays.pop(_META).tobytes())
        if "best_step" not in meta:
            raise ValueError("it was written by an earlier version; start the run anew")
        progress = Progress(**meta)
        _require_types(progress)
    except Exception as error:  # whatever is inside, as anybody can write a checksum
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DistcnnError(f"{path} is not a checkpoint of distcnn: {reason}") from None
    return arrays, progress


def _require_types(progress: Progress) -> None:
    for field in fields(Progress):
        value = getattr(progress, field.name)
        kind: Any = field.type
        if type(value) not in ((int, float) if kind is float else (kind,)):
            raise ValueError(f"its {field.name} is {value!r}; expected {kind.__name__}")


def _read_archive(path: Path) -> dict[str, np.ndarray]:
    """Reads all arrays; takes no more memory than the file has bytes.

    Raises:
        Exception: Of many kinds, if the file is not an archive of plain arrays.
    """
    size = path.stat().st_size
    with open_regular(path) as file, zipfile.ZipFile(file) as archive:
        if sum(member.file_size for member in archive.infolist()) > size:
            raise ValueError("its arrays are larger than the file")
    with open_regular(path) as file, np.load(file, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


def find_checkpoint(path: Path) -> tuple[dict[str, np.ndarray], Progress]:
    """Reads the checkpoint given by `--checkpoint.resume PATH`, a file or a run directory.

    Raises:
        DistcnnError: If there is no checkpoint.
    """
    if path.is_dir():
        checkpoint = Checkpoints(path / "checkpoints", keep=1).load_newest()
        if checkpoint is None:
            raise DistcnnError(f"checkpoint.resume is {path}, which holds no checkpoint")
        return checkpoint
    if not path.exists():
        raise DistcnnError(
            f"checkpoint.resume is {path}, which does not exist; expected auto, never, a run "
            "directory or a checkpoint file"
        )
    if path.suffix != ".npz":
        raise DistcnnError(
            f"checkpoint.resume is {path}, which is no checkpoint; expected a run directory, or a "
            "file such as checkpoints/step-00000704.npz in one"
        )
    arrays, progress = read_checkpoint(path)
    try:
        is_whole = isinstance(paths_in(arrays), dict)
    except (KeyError, ValueError):
        is_whole = False
    if not is_whole:
        raise DistcnnError(f"{path} is not a checkpoint of distcnn: it has no names of variables")
    return arrays, progress


def snapshot(
    variables: dict[str, list[Any]], buffers: dict[str, np.ndarray] | None = None
) -> dict[str, np.ndarray]:
    """Copies variables to the host.

    Args:
        variables: Lists of variables by name of their group.
        buffers: An earlier snapshot that is no longer needed. Its memory is used again, which is
            many times faster where the system is slow to provide new memory.

    Returns:
        One array per variable, named `GROUP/0000` and so on, and `NAMES`, their paths in JSON. None
        shares memory with a variable, so that the next step does not change it.
    """
    named = by_key(variables)
    paths = {key: getattr(variable, "path", key) for key, variable in named.items()}
    copies = {key: _copy(variable, (buffers or {}).get(key)) for key, variable in named.items()}
    return {
        **copies,
        NAMES: np.frombuffer(json.dumps(paths).encode(), np.uint8),
    }


def reserve(variables: dict[str, list[Any]]) -> dict[str, np.ndarray]:
    """Returns buffers for a first `snapshot`, whose memory the system has provided already."""
    return {
        key: np.full(tuple(variable.shape), 0, tf.as_dtype(variable.dtype).as_numpy_dtype)
        for key, variable in by_key(variables).items()
    }


def _copy(variable: Any, buffer: np.ndarray | None) -> np.ndarray:
    array = np.asarray(tf.convert_to_tensor(variable))  # on the CPU a view of the variable
    if buffer is None or (buffer.shape, buffer.dtype) != (array.shape, array.dtype):
        return np.array(array)
    np.copyto(buffer, array)
    return buffer


def by_key(variables: dict[str, list[Any]]) -> dict[str, Any]:
    """Returns variables by the name of their array in a checkpoint, `GROUP/0000` and so on."""
    return {
        f"{group}/{index:04d}": variable
        for group, members in variables.items()
        for index, variable in enumerate(members)
    }


def paths_in(arrays: dict[str, np.ndarray]) -> dict[str, str]:
    """Returns the paths of the variables in a checkpoint, by the name of their array."""
    paths: dict[str, str] = parse_json(arrays[NAMES].tobytes())
    return paths


def restore(variables: dict[str, list[Any]], arrays: dict[str, np.ndarray], origin: str) -> None:
    """Assigns the arrays of a `snapshot` to variables.

    Args:
        variables: Lists of variables by name of their group, as for `snapshot`.
        arrays: The arrays of the snapshot.
        origin: Source of the arrays, for error messages.

    Raises:
        DistcnnError: If they belong to another model or optimizer; no variable is then changed.
    """
    names = by_key(variables)
    stored = {key for key in arrays if key != NAMES and not key.startswith(CALLBACKS)}
    if set(names) != stored:
        raise DistcnnError(
            f"{origin} holds {len(stored)} variables, expected {len(names)}: it is the state of "
            "another model or optimizer; restore the configuration it was saved with"
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


def _best_step(path: Path) -> int | None:
    """Reads which step a checkpoint calls the best; None if it says none, or cannot be read."""
    meta = _read_meta(path, _META)
    step = meta.get("best_step") if isinstance(meta, dict) else None
    return step if isinstance(step, int) and step >= 0 else None


def _read_meta(path: Path, name: str) -> Any:
    """Reads one of the descriptions in a checkpoint; None if it has none, or is damaged."""
    try:
        with open_regular(path) as file, np.load(file, allow_pickle=False) as archive:
            return parse_json(archive[name].tobytes())
    except Exception:  # of any kind: NumPy and zipfile trust what they read
        return None
