"""Images in sharded TFRecord files, with random access by offset."""

import hashlib
import json
import os
import weakref
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config import DataConfig
from distcnn.data import tfrecord_format as layout
from distcnn.data.encoded import EncodedSplit
from distcnn.data.split import Shape, Source
from distcnn.errors import DataError
from distcnn.runtime.files import file_digest

_REMEDY = "copy it again or rewrite the records with distcnn.records"


class _Shards:
    """Open shards for random reads from any thread; closed with the last split that uses them."""

    def __init__(self, entries: list[dict[str, Any]], folder: Path) -> None:
        self.entries = entries
        self.paths = [folder / entry["file"] for entry in entries]
        self._descriptors = [os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in self.paths]
        # Not at exit, when a reading thread may still be running.
        weakref.finalize(self, _close, self._descriptors).atexit = False

    def read(self, shards: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the payloads as an object array of bytes."""
        payloads = np.empty(len(shards), dtype=object)
        for position, (shard, offset, length) in enumerate(
            zip(shards, offsets, lengths, strict=True)
        ):
            payload = os.pread(self._descriptors[shard], length, offset)
            if len(payload) != length:
                raise ValueError(f"{self.paths[shard]} ends within the record at byte {offset}")
            payloads[position] = payload
        return payloads


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


class RecordSplit(EncodedSplit):
    """A split over the records of some shards, in the order of the offsets file.

    Args:
        shards: The open shards.
        arrays: int64 arrays of shape `(n,)`, by their names in `tfrecord_format.ARRAYS`.
        image_shape: Shape of the stored images, or None if they vary.
    """

    def __init__(
        self, shards: _Shards, arrays: Mapping[str, np.ndarray], image_shape: Shape | None
    ) -> None:
        self.labels = arrays["label"]
        self.image_shape = image_shape
        self._shards = shards
        self._set_locations(np.stack([arrays["shard"], arrays["offset"], arrays["length"]]))

    @override
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        locations = tf.unstack(tf.gather(self._tensor, indices, axis=1))
        records = tf.numpy_function(self._shards.read, locations, tf.string, stateful=False)
        records = tf.ensure_shape(records, (indices.shape[0],))
        return tf.io.parse_example(records, {"image": layout.FEATURES["image"]})["image"]

    @override
    def describe(self, index: int) -> str:
        shard, offset, _ = self._locations[:, index]
        return f"{self._shards.paths[shard]}, record at byte {offset}"

    @override
    def fingerprint(self) -> str:
        """Hashes the checksums of the shards and the offsets."""
        digest = hashlib.sha256()
        for entry in self._shards.entries:
            digest.update(entry["sha256"].encode())
        digest.update(np.ascontiguousarray(self._locations).tobytes())
        return digest.hexdigest()

    @override
    def _select(self, indices: np.ndarray) -> None:
        self._set_locations(self._locations[:, indices])

    def _set_locations(self, locations: np.ndarray) -> None:
        self._locations = locations
        with tf.device("CPU:0"):
            self._tensor = tf.constant(locations)  # captured by graphs by reference


def open_tfrecord(config: DataConfig) -> Source:
    """Opens and verifies a folder of shards written by `distcnn.records`.

    Args:
        config: `dir` names the folder.

    Returns:
        The source as it was when it was written.

    Raises:
        DataError: A file is missing, was changed, or does not fit the others.
    """
    assert config.dir is not None
    folder = Path(config.dir)
    index_path = folder / layout.INDEX
    if not index_path.is_file():
        raise DataError(
            f"data.dir {folder} contains no {layout.INDEX}; expected a folder written by "
            "distcnn.records"
        )
    try:
        index = json.loads(index_path.read_text())
        version = index["version"]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{index_path} is not an index of records; {_REMEDY}") from error
    if version != layout.VERSION:
        raise DataError(
            f"{index_path} has format version {version}; expected {layout.VERSION}; {_REMEDY}"
        )
    splits = index["splits"]
    _verify(folder, [file for split in splits.values() for file in _files(split)])
    shape = tuple(index["image_shape"]) if index["image_shape"] else None
    opened = {
        name: _open_split(folder, split, len(index["classes"]), shape)
        for name, split in splits.items()
    }
    return Source(
        name=config.name,
        classes=tuple(index["classes"]),
        train=opened.get("train"),
        validation=opened.get("validation"),
        test=opened.get("test"),
        image_shape=shape,
    )


def _files(split: dict[str, Any]) -> list[dict[str, Any]]:
    return [*split["shards"], split["offsets"]]


def _verify(folder: Path, entries: list[dict[str, Any]]) -> None:
    for entry in entries:
        path = folder / entry["file"]
        if not path.is_file():
            raise DataError(f"the shard {path} is missing; {_REMEDY}")
        size = path.stat().st_size
        if size != entry["bytes"]:
            raise DataError(
                f"the shard {path} has {size} bytes; expected {entry['bytes']}; {_REMEDY}"
            )
    # Threads work in parallel here, as hashlib releases the GIL.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        digests = pool.map(lambda entry: file_digest(folder / entry["file"]), entries)
        for entry, digest in zip(entries, digests, strict=True):
            if digest != entry["sha256"]:
                raise DataError(
                    f"the shard {folder / entry['file']} was changed: its sha256 is {digest}, "
                    f"expected {entry['sha256']}; {_REMEDY}"
                )


def _open_split(
    folder: Path, split: dict[str, Any], classes: int, shape: Shape | None
) -> RecordSplit:
    path = folder / split["offsets"]["file"]
    try:
        with np.load(path, allow_pickle=False) as stored:
            arrays = {name: stored[name].astype(np.int64) for name in layout.ARRAYS}
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path} is not an offsets file ({error}); {_REMEDY}") from error
    labels = arrays["label"]
    if labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"{path} holds labels from {labels.min()} to {labels.max()}; expected 0 to "
            f"{classes - 1}; {_REMEDY}"
        )
    counts = np.bincount(arrays["shard"], minlength=len(split["shards"])).tolist()
    if counts != [entry["records"] for entry in split["shards"]]:
        raise DataError(f"{path} does not match the records in {layout.INDEX}; {_REMEDY}")
    return RecordSplit(_Shards(split["shards"], folder), arrays, shape)
