"""Copying the state of a run into the memory of its hosts, and going on from there."""

import base64
import io
import logging
import platform
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.errors import DistcnnError
from distcnn.storage.background import BackgroundWriter
from distcnn.storage.checkpoint import (
    CALLBACKS,
    Checkpoints,
    Progress,
    snapshot,
)
from distcnn.storage.memory_copies import SHARED_MEMORY, MemoryCopies
from distcnn.storage.metrics_file import METRICS_FILE, metrics_mark
from distcnn.storage.run_directory import RunDirectory
from distcnn.training.callbacks.saved_state import Indexed, save_callbacks
from distcnn.training.setup import TrainingSetup

log = logging.getLogger("distcnn")

_ROOM = 1.1
"""Free memory that a copy needs, as a multiple of its size."""


@dataclass(frozen=True)
class FoundCopy:
    """A copy from which the run goes on.

    Attributes:
        source: The rank that has restored it, and whose state the others take.
        progress: The progress of the run.
        mark: Which metrics belong to it.
        callbacks: The saved state of the user's callbacks.
    """

    source: int
    progress: Progress
    mark: dict[str, Any] | None
    callbacks: dict[str, np.ndarray]


class StateCopies:
    """Keeps the newest state of a run in the memory of each host; all ranks call it together.

    On each host the first rank writes, with a thread. A state that is due while the one before is
    still being written is left out on that host.

    Args:
        setup: The run.
        directory: The run directory.
        checkpoints: Its checkpoints.
        users: The user's callbacks, whose state is copied too.
        memory: A file system in memory.
    """

    def __init__(
        self,
        setup: TrainingSetup,
        directory: RunDirectory,
        checkpoints: Checkpoints,
        users: Indexed,
        memory: Path = SHARED_MEMORY,
    ) -> None:
        self._state = setup.state
        self._phases = setup.phases
        self._backend = setup.backend
        self._directory = directory
        self._checkpoints = checkpoints
        self._users = users
        self._writer = BackgroundWriter()
        self._buffers: dict[str, np.ndarray] | None = None
        run_id = self._backend.broadcast_object(directory.run_id)
        self._copies = None
        if setup.context.cluster.local_rank == 0:
            try:
                self._copies = MemoryCopies(run_id, directory.path, memory)
            except OSError as error:
                self._give_up(f"{memory} cannot be used: {error.strerror}")

    def find(self) -> FoundCopy | None:
        """Restores the newest copy on the rank that has it.

        Returns:
            The copy; None if the newest checkpoint is as new, or if no copy goes on from what is in
            the run directory.
        """
        backend = self._backend
        newest = self._checkpoints.newest_first()
        on_disk = int(newest[0].stem.removeprefix("step-")) if newest else 0
        on_disk = int(backend.broadcast(np.array([float(on_disk)]))[0])
        own = self._copies.newest(on_disk) if self._copies else None
        steps = backend.gather(np.array([float(own[1].step) if own else -1.0]))[:, 0]
        source = int(steps.argmax())
        if steps[source] < 0:
            return None
        content: dict[str, Any] = {}
        if backend.rank == source:
            assert own is not None
            arrays, progress, mark = own
            callbacks = {key: a for key, a in arrays.items() if key.startswith(CALLBACKS)}
            content = {"progress": asdict(progress), "mark": mark, "host": platform.node()}
            content["callbacks"] = _pack(callbacks)
        content = backend.broadcast_object(content, source)
        progress, mark = Progress(**content["progress"]), content["mark"]
        if not backend.run_on_chief(lambda: self._fits(progress, mark)):
            return None
        if self._phases is not None:
            self._phases.enter_before(progress.step)
        if backend.rank == source:
            self._state.restore(arrays, f"the copy in the memory of {content['host']}")
        log.info(
            "resumed         %s at step %d, from the memory of %s",
            self._directory.path,
            progress.step,
            content["host"],
        )
        return FoundCopy(source, progress, mark, _unpack(content["callbacks"]))

    def copy(self, progress: Progress) -> None:
        """Copies the state as it is now.

        Args:
            progress: The progress of the run.
        """
        content: dict[str, Any] = {}
        if self._backend.is_chief:
            content["mark"] = metrics_mark(self._directory.path / METRICS_FILE)
            content["progress"] = asdict(progress)
            content["callbacks"] = _pack(save_callbacks(self._users))
        content = self._backend.broadcast_object(content)
        copies, variables = self._copies, self._state.variables
        if copies is None or self._writer.is_busy:
            return
        self._buffers = snapshot(variables, self._buffers)
        arrays = self._buffers | _unpack(content["callbacks"])
        size, free = sum(a.nbytes for a in arrays.values()), copies.free_bytes()
        if free < _ROOM * size:
            self._give_up(f"it has {free / 1e6:.0f} MB free, and a copy takes {size / 1e6:.0f} MB")
            return
        at = Progress(**content["progress"])
        self._writer.start(lambda: self._write(copies, arrays, at, content["mark"]))

    def close(self, *, remove: bool) -> None:
        """Waits for the writing; called on each rank alone.

        Args:
            remove: Whether the copies are of no use any more, as the run has ended or has saved.
        """
        self._writer.wait()
        if self._copies is not None:
            self._copies.close(remove=remove)
            self._copies = None

    def _write(
        self,
        copies: MemoryCopies,
        arrays: dict[str, np.ndarray],
        progress: Progress,
        mark: dict[str, Any] | None,
    ) -> None:
        try:
            copies.write(arrays, progress, mark)
        except OSError as error:
            self._give_up(f"a copy could not be written: {error.strerror}")

    def _fits(self, progress: Progress, mark: dict[str, Any] | None) -> bool:
        """Returns whether a copy goes on from what is in the run directory; called on the chief."""
        best = progress.best_step
        if best >= 0 and not self._checkpoints.path(best).exists():
            return False  # the best epoch was being saved when the run was lost
        try:
            self._directory.read_metrics(mark)
        except DistcnnError:
            return False
        return True

    def _give_up(self, reason: str) -> None:
        copies, self._copies = self._copies, None
        if copies is not None:
            copies.close(remove=True)
        log.warning(
            "warning: no copies of the state in the memory of %s: %s; raise the size of /dev/shm "
            "(docker run --shm-size), or drop --checkpoint.memory_every_steps",
            platform.node(),
            reason,
        )


def _pack(arrays: dict[str, np.ndarray]) -> str:
    if not arrays:
        return ""
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return base64.b64encode(buffer.getvalue()).decode()


def _unpack(text: str) -> dict[str, np.ndarray]:
    if not text:
        return {}
    with np.load(io.BytesIO(base64.b64decode(text)), allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
