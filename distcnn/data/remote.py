"""Data at an address, such as gs:// or s3://: copied to this host once, by fsspec."""

import dataclasses
import hashlib
import logging
import os
import re
from collections.abc import Callable, Mapping
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

from distcnn.config import DataConfig
from distcnn.data.cache_location import cache_folder
from distcnn.data.image_file import EXTENSIONS
from distcnn.data.progress import progress_bar
from distcnn.errors import DataError, UsageError
from distcnn.runtime.files import locked, parse_json, write_json
from distcnn.runtime.free_space import writable_disk
from distcnn.runtime.text import printable

log = logging.getLogger("distcnn")

_ADDRESS = re.compile(r"[a-z][a-z0-9+.-]*://")
_CONNECTIONS = 16
_TAGS = ("ETag", "etag", "md5Hash", "content_md5", "crc32c", "mtime", "LastModified", "updated")
"""What file systems call that which changes with a file's content; the first one found counts."""


def is_address(name: str | None) -> bool:
    """Returns whether a name is an address rather than a path."""
    return name is not None and _ADDRESS.match(name) is not None


def with_local_files(config: DataConfig) -> DataConfig:
    """Returns a data section of local paths: data at an address are copied to this host's cache.

    Files that have not changed are not copied again. `config` names everything that is copied:
    the folder `dir`, or without it the folder of `labels`, whose images are copied too.

    Raises:
        UsageError: fsspec, or what it needs for this kind of address, is not installed.
        DataError: The files cannot be listed or copied.
    """
    if is_address(config.labels):
        assert config.labels is not None
        folder, _, name = config.labels.rpartition("/")
        other_folder = config.dir is not None

        def wanted(path: str) -> bool:
            return path == name or (not other_folder and _is_image(path))

        local = _copied(folder, wanted, "data.labels")
        if not (local / name).is_file():
            raise DataError(f"data.labels {printable(config.labels)} does not exist")
        config = dataclasses.replace(config, labels=str(local / name))
    if is_address(config.dir):
        assert config.dir is not None
        every = config.source not in ("folder", "labels")
        local = _copied(config.dir, lambda path: every or _is_image(path), "data.dir")
        config = dataclasses.replace(config, dir=str(local))
    return config


def _is_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in EXTENSIONS


def _copied(address: str, wanted: Callable[[str], bool], key: str) -> Path:
    """Returns this host's copy of a folder."""
    address = address.rstrip("/")
    name = hashlib.sha256(f"{key} {address}".encode("utf-8", "surrogateescape")).hexdigest()[:32]
    folder = cache_folder().parent / "remote" / name
    shown = f"{key} {printable(address)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder.with_suffix(".lock")):
            files, found = _listed(address, wanted, shown)
            _bring_up_to_date(folder, files, found, shown)
    except OSError as error:
        raise DataError(
            f"{shown} cannot be copied to {folder}: {error.strerror or error}; free some space, or "
            "set XDG_CACHE_HOME"
        ) from error
    return folder / "files"


def _listed(
    address: str, wanted: Callable[[str], bool], shown: str
) -> tuple[Any, dict[str, tuple[str, int, str]]]:
    """Returns the file system, and the place, size and tag of each file by its name."""
    try:
        from fsspec.core import url_to_fs
    except ImportError:
        raise UsageError(
            f'{shown} is an address, which needs fsspec; pip install "distcnn[cloud]"'
        ) from None
    try:
        files, root = url_to_fs(address)
        found = files.find(root, detail=True)
    except ImportError as error:
        raise UsageError(f"{shown} needs a package that is not installed: {error}") from None
    except Exception as error:  # whatever the client of the store raises
        raise DataError(f"{shown} cannot be listed: {_one_line(error)}") from None
    listed = {}
    for place, about in found.items():
        name = place.removeprefix(root).lstrip("/")
        if not wanted(name):
            continue
        if ".." in PurePosixPath(name).parts or "\0" in name:
            raise DataError(f"{shown} has a file named {printable(name)}; rename it")
        listed[name] = (place, int(about["size"]), _tag_of(about))
    if not listed:
        raise DataError(f"{shown} holds no images that can be read; expected a folder of files")
    return files, listed


def _tag_of(about: Mapping[str, Any]) -> str:
    return next((f"{key} {about[key]}" for key in _TAGS if about.get(key)), "")


def _bring_up_to_date(
    folder: Path, files: Any, found: dict[str, tuple[str, int, str]], shown: str
) -> None:
    """Copies what has changed, and removes what is no longer there."""
    known = _read_known(folder / "copied.json")
    missing = {
        name: about
        for name, about in found.items()
        if known.get(name) != [*about[1:]] or not _has_size(folder / "files" / name, about[1])
    }
    for name in known.keys() - found.keys():
        (folder / "files" / name).unlink(missing_ok=True)
        _remove_empty(folder / "files", (folder / "files" / name).parent)
    kept = {name: list(about[1:]) for name, about in found.items() if name not in missing}
    size = sum(size for _, size, _ in missing.values())
    if size > writable_disk(folder):
        raise DataError(
            f"{shown} has {size / 1e9:.2f} GB to copy to {folder}, where there is no space for it; "
            "free some, or set XDG_CACHE_HOME"
        )
    if missing:
        log.info("%s: copying %d files, %.1f MB, to %s", shown, len(missing), size / 1e6, folder)
    failures: dict[str, Exception] = {}
    with (
        ThreadPoolExecutor(_CONNECTIONS) as pool,
        progress_bar("Copying", size, is_bytes=True) as advance,
    ):
        jobs = {
            name: pool.submit(_copy, files, about, folder / "files" / name)
            for name, about in missing.items()
        }
        for name, job in jobs.items():
            try:
                job.result()
            except CancelledError:
                continue
            except Exception as error:  # whatever the client of the store raises
                failures[name] = error
                pool.shutdown(wait=False, cancel_futures=True)
                continue
            kept[name] = list(missing[name][1:])
            advance(missing[name][1])
    write_json(folder / "copied.json", kept)
    for name, cause in failures.items():
        raise DataError(
            f"{shown}: {printable(name)} cannot be copied: {_one_line(cause)}; run the same "
            "command again to go on"
        )


def _copy(files: Any, about: tuple[str, int, str], path: Path) -> None:
    place, size, tag = about
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    files.get_file(place, str(partial))
    if partial.stat().st_size != size:
        raise OSError(f"has {partial.stat().st_size} bytes; expected {size}")
    # Hosts copy at different times, but recognise files by these.
    moment = int.from_bytes(hashlib.sha256(tag.encode()).digest()[:4], "little")
    os.utime(partial, (moment, moment))
    partial.replace(path)


def _has_size(path: Path, size: int) -> bool:
    try:
        return path.stat().st_size == size
    except OSError:
        return False


def _remove_empty(top: Path, folder: Path) -> None:
    while folder != top and folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
        folder = folder.parent


def _read_known(path: Path) -> dict[str, Any]:
    try:
        known = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
