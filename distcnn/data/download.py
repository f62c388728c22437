"""Downloads and verifies a file, once for all processes on a machine."""

import hashlib
import http.client
import logging
import urllib.error
import urllib.request
from pathlib import Path

from distcnn.data.progress import progress_bar
from distcnn.errors import DataError
from distcnn.runtime.files import file_digest, locked, replacing

_TIMEOUT_SECONDS = 30.0
_CHUNK_BYTES = 1 << 20
_MAX_BYTES = 1 << 30  # several times as much as an archive of CIFAR has
_logger = logging.getLogger("distcnn")


def download(url: str, path: Path, sha256: str) -> None:
    """Downloads a file unless it already exists; other processes that need it wait.

    Args:
        url: URL of the file.
        path: Destination; its folder is created. The file appears there only once it is verified.
        sha256: Expected checksum, in hexadecimal.

    Raises:
        DataError: The download, the disk or the checksum fails; the message names alternatives.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with locked(path.with_name(f"{path.name}.lock")):
            if path.exists() and file_digest(path) == sha256:
                return
            _logger.info("Downloading %s to %s", url, path)
            with replacing(path) as partial:
                received = _fetch(url, path, partial)
                if received != sha256:
                    raise _download_error(url, path, f"its sha256 is {received}, expected {sha256}")
    except OSError as error:
        raise DataError(
            f"cannot write {path}: {error.strerror}; free some space, or set KERAS_HOME or "
            "--data.dir to another folder"
        ) from error


def _download_error(url: str, path: Path, reason: object) -> DataError:
    return DataError(
        f"cannot download {url}: {reason}; place the archive at {path}, pass --data.dir DIR with "
        "its folder, or use --recipe quickstart, which needs no download"
    )


def _fetch(url: str, path: Path, partial: Path) -> str:
    digest = hashlib.sha256()
    with partial.open("wb") as file:
        try:
            response = urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, urllib.error.HTTPError):
                error.close()
            raise _download_error(url, path, getattr(error, "reason", error)) from error
        length = response.headers["Content-Length"] or ""
        total = int(length) if length.isdecimal() and len(length) < 20 else None
        received = 0
        with response, progress_bar(path.name, total, delay=0, is_bytes=True) as advance:
            while True:
                try:
                    chunk = response.read(_CHUNK_BYTES)
                except (OSError, http.client.HTTPException) as error:
                    raise _download_error(
                        url, path, f"the connection was lost ({error})"
                    ) from error
                if not chunk:
                    break
                received += len(chunk)
                if max(received, total or 0) > _MAX_BYTES:
                    size = f"it has {max(received, total or 0)} bytes or more"
                    raise _download_error(url, path, f"{size}; expected at most {_MAX_BYTES}")
                file.write(chunk)
                digest.update(chunk)
                advance(len(chunk))
    return digest.hexdigest()
