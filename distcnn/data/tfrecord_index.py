"""Reads the index and the offsets of a folder of record shards, which may be damaged."""

import hashlib
import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.data import tfrecord_format as layout
from distcnn.errors import DataError
from distcnn.runtime.files import parse_json

REMEDY = "copy it again or rewrite the records with distcnn.records"
_MAX_INDEX_BYTES = 1 << 28
_HEADER_BYTES = 4096  # more than anything in the file beside the numbers


def read_index(folder: Path) -> dict[str, Any]:
    """Reads `index.json`.

    Returns:
        The content, whose keys and types are as in `tfrecord_format`.

    Raises:
        DataError: There is none, it is damaged, or of another version.
    """
    path = folder / layout.INDEX
    if not path.is_file():
        raise DataError(
            f"data.dir {folder} contains no {layout.INDEX}; expected a folder written by "
            "distcnn.records"
        )
    try:
        if path.stat().st_size > _MAX_INDEX_BYTES:
            raise ValueError("too large")
        index = parse_json(path.read_text())
        version = index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is not an index of records; {REMEDY}") from error
    if version != layout.VERSION:
        raise DataError(f"{path} has format version {version}; expected {layout.VERSION}; {REMEDY}")
    digest = layout.index_digest(index)
    # Older folders have no checksum. Other keys are refused, as damage may have renamed it.
    if set(index) - layout.KEYS or index.get("sha256", digest) != digest:
        raise DataError(
            f"{path} does not match its checksum; {REMEDY}, or remove its key sha256 if you edited "
            "it on purpose"
        )
    for key, is_valid in (
        ("classes", _is_list(index.get("classes"), str)),
        ("image_shape", _is_shape(index.get("image_shape"))),
        ("splits", _are_splits(index.get("splits"))),
    ):
        if not is_valid:
            raise DataError(f"{path} is not an index of records: its {key} is damaged; {REMEDY}")
    return index


def read_offsets(folder: Path, split: dict[str, Any], classes: int) -> dict[str, np.ndarray]:
    """Reads and verifies the offsets file of a split.

    Args:
        folder: The folder of the shards.
        split: The entry of the split in the index.
        classes: Number of classes.

    Returns:
        int64 arrays of shape `(n,)`, by their names in `tfrecord_format.ARRAYS`; each record lies
        within its shard.

    Raises:
        DataError: The file is missing, was changed, or does not fit the index.
    """
    entry, shards = split["offsets"], split["shards"]
    path = folder / entry["file"]
    try:
        records = sum(shard["records"] for shard in shards)
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(f"{path} has {size} bytes; expected {entry['bytes']}; {REMEDY}")
        if size > len(layout.ARRAYS) * (_HEADER_BYTES + 8 * records):
            raise ValueError(f"it has {size} bytes for {records} records")
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        if digest != entry["sha256"]:
            raise DataError(
                f"{path} was changed: its sha256 is {digest}, expected {entry['sha256']}; {REMEDY}"
            )
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            arrays = {name: _read_array(archive, name, records) for name in layout.ARRAYS}
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing; {REMEDY}") from error
    except DataError:
        raise
    except Exception as error:  # a damaged archive may raise anything
        raise DataError(f"{path} is not an offsets file ({error}); {REMEDY}") from error
    _verify(path, arrays, shards, classes)
    return arrays


def _read_array(archive: zipfile.ZipFile, name: str, records: int) -> np.ndarray:
    member = archive.getinfo(f"{name}.npy")
    if member.file_size > _HEADER_BYTES + 8 * records:
        raise ValueError(f"its {name} has {member.file_size} bytes for {records} records")
    stream = io.BytesIO(archive.read(member))
    if np.lib.format.read_magic(stream) != (1, 0):
        raise ValueError(f"its {name} is of another version")
    shape, _, dtype = np.lib.format.read_array_header_1_0(stream)
    if shape != (records,) or dtype.kind not in "iu":
        raise ValueError(f"its {name} is {dtype} of shape {shape}; expected {records} integers")
    return np.frombuffer(stream.read(), dtype, records).astype(np.int64)


def _verify(
    path: Path, arrays: dict[str, np.ndarray], shards: list[dict[str, Any]], classes: int
) -> None:
    labels, shard = arrays["label"], arrays["shard"]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}; expected 0 to "
            f"{classes - 1}; {REMEDY}"
        )
    is_valid = shard.min() >= 0 and shard.max() < len(shards)
    if is_valid:
        counts = np.bincount(shard, minlength=len(shards)).tolist()
        sizes = np.array([entry["bytes"] for entry in shards], np.int64)[shard]
        offset, length = arrays["offset"], arrays["length"]
        is_within = (offset >= 0) & (length >= 0) & (offset <= sizes) & (length <= sizes - offset)
        is_valid = counts == [entry["records"] for entry in shards] and bool(is_within.all())
    if not is_valid:
        raise DataError(f"{path} does not match the records in {layout.INDEX}; {REMEDY}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 < value < 1 << 62


def _is_list(value: Any, kind: type) -> bool:
    return isinstance(value, list) and bool(value) and all(type(item) is kind for item in value)


def _is_shape(shape: Any) -> bool:
    return shape is None or (_is_list(shape, int) and len(shape) == 3 and min(shape) > 0)


def _is_entry(entry: Any) -> bool:
    return (
        isinstance(entry, dict)
        and isinstance(entry.get("file"), str)
        and Path(entry["file"]).name == entry["file"]
        and isinstance(entry.get("sha256"), str)
        and _is_count(entry.get("bytes"))
    )


def _is_shard(entry: Any) -> bool:
    # Each record has a frame, so that the number of records has a bound.
    return (
        _is_entry(entry)
        and _is_count(entry.get("records"))
        and entry["records"] <= entry["bytes"] // layout.FRAME_BYTES
    )


def _are_splits(splits: Any) -> bool:
    return isinstance(splits, dict) and all(
        name in layout.SPLITS
        and isinstance(split, dict)
        and _is_list(split.get("shards"), dict)
        and all(map(_is_shard, split["shards"]))
        and _is_entry(split.get("offsets"))
        for name, split in splits.items()
    )
