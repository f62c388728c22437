"""A copy of a run directory at an address such as `s3://bucket/runs/a`, for hosts that are lost.

A mirror has objects, named by their checksum, and generations, which list the files of the run at a
step with their objects. A generation is written when its objects are, and objects of the one before
stay until then, so that the newest complete generation is always whole, wherever a writer is killed
and whether or not the store replaces objects atomically.
"""

import contextlib
import hashlib
import json
import logging
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.files import file_digest, parse_json
from distcnn.storage.checkpoint import Checkpoints
from distcnn.storage.metrics_file import METRICS_FILE

log = logging.getLogger("distcnn")

_GENERATION = re.compile(r"generation-(\d{8,})\.json")
_OBJECTS = "objects"
_LAST = "config.yaml"
"""The file without which a directory does not count as a run."""

_FILES = ("environment.json", "summary.json", "model.keras")
_STATES = ("checkpoints/*.npz", "checkpoints/*.npz.sha256")


class Mirror:
    """Copies a run directory to an address, and back.

    Args:
        address: A directory that fsspec can open.
        directory: The run directory.

    Raises:
        UsageError: If fsspec, or what it needs for this kind of address, is not installed.
    """

    def __init__(self, address: str, directory: Path) -> None:
        self.address = address
        self._directory = directory
        self._digests: dict[tuple[str, int, int], str] = {}
        try:
            import fsspec

            options = {"auto_mkdir": True} if "://" not in address else {}
            self._store, root = fsspec.core.url_to_fs(address, **options)
        except (ImportError, ValueError) as error:
            raise UsageError(
                f"checkpoint.mirror is {address}, which cannot be opened: {_reason(error)}; "
                'pip install "distcnn[cloud]", or give the address of a directory'
            ) from None
        self._root = str(root).rstrip("/")

    def push(self, run_id: str, step: int, *, is_last: bool = False) -> None:
        """Copies what the run directory holds; a failure is a warning, as the run can go on.

        Args:
            run_id: The id of the run.
            step: Its newest step that is saved.
            is_last: Whether the run has ended.
        """
        try:
            self._push(run_id, step)
        except Exception as error:  # of any kind: each store has its own
            log.warning(
                "warning: %s does not have step %d: %s%s",
                self.address,
                step,
                _reason(error),
                "" if is_last else "; the next checkpoint tries again",
            )

    def pull(self, run_id: str) -> None:
        """Makes the run directory what the mirror has, if that is newer.

        Args:
            run_id: The id of the run in the directory; empty if there is none.

        Raises:
            DistcnnError: If the mirror cannot be read, is damaged, or has another run.
        """
        generations = self._listed()
        newest = Checkpoints(self._directory / "checkpoints", keep=1).newest_first()
        own = int(newest[0].stem.removeprefix("step-")) if run_id and newest else -1
        found = False
        for name in generations:
            generation = self._read(name)
            if generation is None:
                continue
            found = True
            if run_id and generation["run_id"] != run_id:
                raise DistcnnError(
                    f"checkpoint.mirror is {self.address}, which has another run than "
                    f"{self._directory}; give another address, or another --out"
                )
            if generation["step"] <= own:
                return
            if self._fetch(generation["files"]):
                log.info("fetched         step %d from %s", generation["step"], self.address)
                return
            log.warning("warning: %s of %s is damaged", name, self.address)
        if found or generations:
            raise DistcnnError(
                f"checkpoint.mirror is {self.address}, of which no generation is whole; delete it, "
                "or give another address"
            )

    def require_empty(self) -> None:
        """Checks that a new run does not replace another one.

        Raises:
            DistcnnError: If the mirror has a run, or cannot be read.
        """
        if self._listed():
            raise DistcnnError(
                f"checkpoint.mirror is {self.address}, which has a run already; give another "
                "address, or delete it"
            )

    def _listed(self) -> list[str]:
        """Returns the names of the generations, the newest first.

        Raises:
            DistcnnError: If the mirror cannot be read.
        """
        try:
            return self._generations()
        except Exception as error:
            raise DistcnnError(
                f"checkpoint.mirror is {self.address}, which cannot be read: {_reason(error)}; "
                "start again when it can, or drop --checkpoint.mirror to go on without it"
            ) from None

    def _push(self, run_id: str, step: int) -> None:
        before = self._generations()
        known = (self._read(before[0]) if before else None) or {"files": {}}
        there = {entry["sha256"] for entry in known["files"].values()}
        files: dict[str, dict[str, Any]] = {}
        for name, content in self._contents():
            digest = self._digest(content)
            size = len(content) if isinstance(content, bytes) else content.stat().st_size
            files[name] = {"sha256": digest, "bytes": size}
            if digest in there:
                continue
            if isinstance(content, bytes):
                self._store.pipe_file(self._path(_OBJECTS, digest), content)
            else:
                self._store.put_file(str(content), self._path(_OBJECTS, digest))
        generation = {"run_id": run_id, "step": step, "files": files}
        number = 1 + max([int(name[len("generation-") : -len(".json")]) for name in before] + [0])
        name = f"generation-{number:08d}.json"
        self._store.pipe_file(self._path(name), json.dumps(generation).encode())
        self._remove_old(before[1:], there | {entry["sha256"] for entry in files.values()})

    def _contents(self) -> list[tuple[str, Path | bytes]]:
        """Returns the files of the run by name; those that may change meanwhile by content."""
        folder = self._directory
        paths = [folder / name for name in (*_FILES, _LAST) if (folder / name).is_file()]
        paths += [path for pattern in _STATES for path in sorted(folder.glob(pattern))]
        found: list[tuple[str, Path | bytes]]
        found = [(str(path.relative_to(folder)), path) for path in paths]
        metrics = folder / METRICS_FILE
        return [*found, (METRICS_FILE, metrics.read_bytes())] if metrics.is_file() else found

    def _digest(self, content: Path | bytes) -> str:
        if isinstance(content, bytes):
            return hashlib.sha256(content).hexdigest()
        status = content.stat()
        key = (str(content), status.st_size, status.st_mtime_ns)
        if key not in self._digests:
            self._digests[key] = file_digest(content)
        return self._digests[key]

    def _remove_old(self, generations: list[str], used: set[str]) -> None:
        for name in generations:
            self._store.rm_file(self._path(name))
        for name in self._names(_OBJECTS):
            if name not in used:
                self._store.rm_file(self._path(_OBJECTS, name))

    def _generations(self) -> list[str]:
        """Returns the names of the generations, the newest first."""
        names = [name for name in self._names() if _GENERATION.fullmatch(name)]
        return sorted(names, key=lambda name: int(name[len("generation-") : -5]), reverse=True)

    def _names(self, *parts: str) -> list[str]:
        self._store.invalidate_cache()
        try:
            found = self._store.ls(self._path(*parts), detail=False)
        except FileNotFoundError:
            return []
        return [posixpath.basename(str(path).rstrip("/")) for path in found]

    def _read(self, name: str) -> dict[str, Any] | None:
        """Reads a generation; None if it was not written completely."""
        try:
            content = parse_json(self._store.cat_file(self._path(name)))
            files = content["files"]
            is_whole = all(
                not Path(file).is_absolute()
                and ".." not in Path(file).parts
                and re.fullmatch("[0-9a-f]{64}", entry["sha256"])
                for file, entry in files.items()
            )
            if not is_whole or type(content["step"]) is not int or _LAST not in files:
                return None
            return {"run_id": str(content["run_id"]), "step": content["step"], "files": files}
        except (ValueError, LookupError, TypeError, AttributeError):
            return None

    def _fetch(self, files: dict[str, dict[str, Any]]) -> bool:
        """Fetches the files of a generation, all or none; returns whether they are intact."""
        partial = self._directory / ".partial-mirror"
        shutil.rmtree(partial, ignore_errors=True)
        try:
            for name, entry in files.items():
                path = partial / name
                path.parent.mkdir(parents=True, exist_ok=True)
                with contextlib.suppress(FileNotFoundError):
                    self._store.get_file(self._path(_OBJECTS, entry["sha256"]), str(path))
                if not path.is_file() or file_digest(path) != entry["sha256"]:
                    return False
            for name in sorted(files, key=lambda name: name == _LAST):
                target = self._directory / name
                target.parent.mkdir(parents=True, exist_ok=True)
                (partial / name).replace(target)
            return True
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _path(self, *parts: str) -> str:
        return "/".join((self._root, *parts))


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
