"""The record beside cached images: which of them are bad, and the checksums of the others' file."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distcnn.runtime.files import parse_json, replacing
from distcnn.runtime.watched_file import DamagedFileError

_REMEDY = "delete it"


@dataclass(frozen=True)
class Verdict:
    """What decoding all images of a split has shown.

    Attributes:
        key: The key of the cache, which names the split and the image shape.
        bad: Sorted indices of the images that cannot be decoded.
        checksums: Checksums of the file of decoded images, or None if there is none.
    """

    key: str
    bad: list[int]
    checksums: list[int] | None


def read_verdict(path: Path, key: str, count: int) -> Verdict | None:
    """Reads a verdict.

    Args:
        path: The file.
        key: The expected key.
        count: Number of images in the split.

    Returns:
        The verdict, or None if there is no such file.

    Raises:
        OSError: The file cannot be read.
        DamagedFileError: The file is not what was written, or belongs to another cache.
    """
    try:
        content = parse_json(path.read_bytes())
        digest = content.pop("sha256", None)
        verdict = Verdict(**content)
        is_whole = digest == _digest(content)
        is_ours = verdict.key == key and all(0 <= index < count for index in verdict.bad)
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, AttributeError) as error:
        raise DamagedFileError(path, "is not a record of decoded images", _REMEDY) from error
    if digest is None:
        raise DamagedFileError(path, "has no checksum", _REMEDY)
    if not is_whole:
        raise DamagedFileError(path, "does not match its checksum", _REMEDY)
    if not is_ours:
        raise DamagedFileError(path, "belongs to other images", _REMEDY)
    return verdict


def write_verdict(path: Path, verdict: Verdict) -> None:
    """Writes a verdict and its own checksum, atomically.

    Raises:
        OSError: The file cannot be written.
    """
    content = asdict(verdict)
    with replacing(path) as partial:
        partial.write_text(json.dumps(content | {"sha256": _digest(content)}), encoding="utf-8")


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
