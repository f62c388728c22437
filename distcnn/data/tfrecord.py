"""Images in sharded TFRecord files, with random access by offset."""

import hashlib
import os
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
from distcnn.data.tfrecord_index import REMEDY, read_index, read_offsets
from distcnn.errors import DataError
from distcnn.runtime.watched_file import WatchedFile


class Shards:
    """Verified shards, open for random reads from any thread.

    Raises:
        DataError: A shard is missing or was changed.
    """

    def __init__(self, entries: list[dict[str, Any]], folder: Path) -> None:
        self.entries = entries
        self.paths = [folder / entry["file"] for entry in entries]
        # Threads work in parallel here, as hashlib releases the GIL.
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            self._files = list(pool.map(_open_shard, entries, self.paths))

    def read(self, shards: np.ndarray, offsets: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Returns the payloads as an object array of bytes."""
        payloads = np.empty(len(shards), dtype=object)
        for position, (shard, offset, length) in enumerate(
            zip(shards.tolist(), offsets.tolist(), lengths.tolist(), strict=True)
        ):
            payloads[position] = self._files[shard].read(length, offset)
        for shard in set(shards.tolist()):
            self._files[shard].verify()
        return payloads


def _open_shard(entry: dict[str, Any], path: Path) -> WatchedFile:
    def find_damage(descriptor: int) -> str | None:
        size = os.fstat(descriptor).st_size
        if size != entry["bytes"]:
            return f"has {size} bytes; expected {entry['bytes']}"
        with open(descriptor, "rb", closefd=False) as file:
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != entry["sha256"]:
            return f"was changed: its sha256 is {digest}, expected {entry['sha256']}"
        return None

    try:
        return WatchedFile(path, find_damage, REMEDY)
    except FileNotFoundError as error:
        raise DataError(f"the shard {path} is missing; {REMEDY}") from error
    except OSError as error:
        raise DataError(f"the shard {path} cannot be read: {error.strerror}; {REMEDY}") from error


class RecordSplit(EncodedSplit):
    """A split over the records of some shards, in the order of the offsets file.

    Args:
        shards: The open shards.
        arrays: int64 arrays of shape `(n,)`, by their names in `tfrecord_format.ARRAYS`.
        image_shape: Shape of the stored images, or None if they vary.
    """

    def __init__(
        self, shards: Shards, arrays: Mapping[str, np.ndarray], image_shape: Shape | None
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
    def stored_bytes(self) -> int:
        return int(self._locations[2].sum())

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
    index = read_index(folder)
    splits = index["splits"]
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


def _open_split(
    folder: Path, split: dict[str, Any], classes: int, shape: Shape | None
) -> RecordSplit:
    arrays = read_offsets(folder, split, classes)
    return RecordSplit(Shards(split["shards"], folder), arrays, shape)
