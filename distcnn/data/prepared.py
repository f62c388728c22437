"""Image classification data as TensorFlow Datasets prepares them, read without that package."""

import hashlib
import io
import struct
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.cache_location import cache_folder
from distcnn.data.encoded import usable_cores
from distcnn.data.progress import progress_bar
from distcnn.data.split import Source
from distcnn.data.tfrecord import RecordSplit, Shards
from distcnn.data.tfrecord_format import ARRAYS, FRAME_BYTES, HEADER_BYTES
from distcnn.errors import DataError
from distcnn.runtime.files import locked, parse_json, replacing
from distcnn.runtime.text import printable

_INFO = "dataset_info.json"
_SPLITS = {"train": "train", "validation": "validation", "valid": "validation", "test": "test"}
_VERSION = 1
_PARSED_AT_ONCE = 1024
_REMEDY = "prepare the data set again"


def open_prepared(config: DataConfig) -> Source:
    """Opens a data set that TensorFlow Datasets has prepared.

    Args:
        config: `dir` names its folder, NAME/VERSION, or a folder above it with one version.

    Returns:
        A source with the splits train, validation and test, as far as they exist.

    Raises:
        DataError: The folder holds something else, or images without a class.
    """
    assert config.dir is not None
    folder = _find(Path(config.dir))
    info = _read_json(folder / _INFO)
    classes = _features_of(folder)
    splits = {}
    try:
        kind = info.get("fileFormat", "tfrecord")
        if kind != "tfrecord":
            raise DataError(
                f"{printable(folder)} holds {printable(kind)} files; expected tfrecord; prepare "
                "the data set in that format"
            )
        for split in info["splits"]:
            if split["name"] in _SPLITS:
                names = _shards_of(folder, info["name"], split)
                splits[_SPLITS[split["name"]]] = _open_split(folder, names, len(classes))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f"{printable(folder / _INFO)} is damaged ({error}); {_REMEDY}") from None
    if not splits:
        known = ", ".join(_SPLITS)
        raise DataError(f"{printable(folder)} has none of the splits {known}")
    return Source(
        name=config.name,
        classes=classes,
        train=splits.get("train"),
        validation=splits.get("validation"),
        test=splits.get("test"),
        image_shape=None,
    )


def _find(folder: Path) -> Path:
    """Returns the folder of the only version of a data set in a folder."""
    if (folder / _INFO).is_file():
        return folder
    found = sorted(path.parent for path in folder.glob(f"*/{_INFO}"))
    found = found or sorted(path.parent for path in folder.glob(f"*/*/{_INFO}"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(printable(path.relative_to(folder)) for path in found[:5])
        raise DataError(f"data.dir {printable(folder)} holds {names}; name one of them")
    raise DataError(
        f"data.dir {printable(folder)} holds no {_INFO}; expected the folder of a data set that "
        "TensorFlow Datasets has prepared, NAME/VERSION"
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{printable(path)} cannot be read ({error}); {_REMEDY}") from None
    if not isinstance(content, dict):
        raise DataError(f"{printable(path)} is damaged; {_REMEDY}")
    return content


def _features_of(folder: Path) -> tuple[str, ...]:
    """Returns the names of the classes, after checking that there are images with one class."""
    try:
        described = _read_json(folder / "features.json")
        features = described["featuresDict"]["features"]
        kinds = {
            name: about["pythonClassName"].rpartition(".")[2] for name, about in features.items()
        }
        count = int(features.get("label", {}).get("classLabel", {}).get("numClasses", 0))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{printable(folder)}: features.json is damaged ({error})") from None
    if kinds.get("image") != "Image" or kinds.get("label") != "ClassLabel":
        shown = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
        raise DataError(
            f"{printable(folder)} has the features {printable(shown)}; expected image (Image) and "
            "label (ClassLabel)"
        )
    names = folder / "label.labels.txt"
    if names.is_file():
        found = tuple(names.read_text(encoding="utf-8").split("\n"))
        found = found[:-1] if found[-1] == "" else found
        if len(found) == count:
            return found
    return tuple(str(index) for index in range(count))


def _shards_of(folder: Path, name: str, split: dict[str, Any]) -> list[str]:
    """Returns the names of the files of a split."""
    count = len(split["shardLengths"])
    template = split.get("filepathTemplate") or "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    names = []
    for index in range(count):
        values = {
            "{DATASET}": name,
            "{SPLIT}": split["name"],
            "{FILEFORMAT}": "tfrecord",
            "{SHARD_INDEX}": f"{index:05}",
            "{NUM_SHARDS}": f"{count:05}",
            "{SHARD_X_OF_Y}": f"{index:05}-of-{count:05}",
        }
        text = template
        for key, value in values.items():
            text = text.replace(key, value)
        if Path(text).name != text:
            raise ValueError(f"its filepathTemplate is {template}")
        if not (folder / text).is_file():
            raise DataError(f"{printable(folder / text)} is missing; {_REMEDY}")
        names.append(text)
    return names


def _open_split(folder: Path, names: list[str], classes: int) -> RecordSplit:
    with (
        ThreadPoolExecutor(usable_cores()) as pool,
        progress_bar("Indexing records", len(names)) as advance,
    ):
        indices = []
        for index in pool.map(lambda name: _indexed(folder / name), names):
            indices.append(index)
            advance(1)
    entries = [
        {"file": name, "bytes": size, "sha256": digest}
        for name, (_, size, digest) in zip(names, indices, strict=True)
    ]
    columns = [rows for rows, _, _ in indices]
    shard = np.repeat(np.arange(len(names)), [len(rows) for rows in columns])
    rows = np.concatenate(columns)
    arrays = dict(zip(ARRAYS, (shard, *rows.T), strict=True))
    if len(rows) and not 0 <= arrays["label"].min() <= arrays["label"].max() < classes:
        raise DataError(
            f"{printable(folder)} has labels from {arrays['label'].min()} to "
            f"{arrays['label'].max()}; expected 0 to {classes - 1}; {_REMEDY}"
        )
    return RecordSplit(Shards(entries, folder), arrays, None)


def _indexed(path: Path) -> tuple[np.ndarray, int, str]:
    """Returns offset, length and label of each record of a file, its size and its checksum.

    The index is kept in the cache as long as the file does not change.
    """
    status = path.stat()
    key = f"{_VERSION} {path.absolute()} {status.st_size} {status.st_mtime_ns}"
    name = hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()[:32]
    file = cache_folder().parent / "records" / f"{name}.npz"
    try:
        with np.load(file, allow_pickle=False) as stored:
            return stored["rows"], status.st_size, str(stored["digest"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass
    content = path.read_bytes()
    rows = _rows_of(path, content)
    digest = hashlib.sha256(content).hexdigest()
    file.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    np.savez(buffer, rows=rows, digest=np.array(digest))
    with locked(file.with_suffix(".lock")), replacing(file) as partial:
        partial.write_bytes(buffer.getvalue())
    return rows, len(content), digest


def _rows_of(path: Path, content: bytes) -> np.ndarray:
    """Returns offset, length and label of each record, int64 `(records, 3)`."""
    places = []
    start = 0
    while start < len(content):
        if start + FRAME_BYTES > len(content):
            raise DataError(f"{printable(path)} is cut off at byte {start}; {_REMEDY}")
        (length,) = struct.unpack_from("<Q", content, start)
        end = start + FRAME_BYTES + length
        if end > len(content):
            raise DataError(f"{printable(path)} is cut off at byte {start}; {_REMEDY}")
        places.append((start + HEADER_BYTES, length))
        start = end
    labels = []
    for first in range(0, len(places), _PARSED_AT_ONCE):
        part = places[first : first + _PARSED_AT_ONCE]
        records = [content[offset : offset + length] for offset, length in part]
        try:
            parsed = tf.io.parse_example(records, {"label": tf.io.FixedLenFeature((), tf.int64)})
        except tf.errors.OpError:
            raise DataError(
                f"{printable(path)} holds a record without a label; {_REMEDY}"
            ) from None
        labels.append(parsed["label"].numpy())
    found = np.concatenate(labels) if labels else np.zeros(0, np.int64)
    return np.column_stack([np.array(places, np.int64).reshape(-1, 2), found])
