"""Writes any source as sharded TFRecord files, completely or not at all."""

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.data import tfrecord_format as layout
from distcnn.data.decode import failure_reason
from distcnn.data.encoded import EncodedSplit, parallel_map
from distcnn.data.progress import progress_bar
from distcnn.data.split import Source, Split
from distcnn.errors import DataError, UsageError
from distcnn.runtime.files import file_digest

_CHUNK_IMAGES = 64


def write_records(source: Source, out: Path, shards: int) -> dict[str, Any]:
    """Writes a folder to be read with `--data.name tfrecord --data.dir OUT`.

    Images stored as files keep their bytes (they are not decoded here, so bad ones are found when
    the records are loaded); decoded images are written as PNG, which is lossless.

    Args:
        source: Any opened source.
        out: Folder to create. It appears once everything has been written.
        shards: Number of shards per split, each of consecutive images; a split with fewer images
            gets one shard per image.

    Returns:
        A summary: `out`, and for each split its `images`, `shards` and `bytes`.

    Raises:
        UsageError: `out` exists and is not empty, `shards` is below 1, or the images have several
            labels or numbers.
        DataError: An image cannot be read, or the disk cannot be written.
    """
    if shards < 1:
        raise UsageError(f"shards is {shards}; expected at least 1")
    if source.task != "classification":
        raise UsageError(
            f"the labels are for {source.task}, but records hold one class for each image; train "
            "from the files and --data.labels"
        )
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out} already exists; expected a new or empty folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
        try:
            index = _write_all(source, partial, shards)
            partial.chmod(0o755)
            partial.rename(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, tf.errors.OpError) as error:
        reason = failure_reason(error) if isinstance(error, tf.errors.OpError) else error
        raise DataError(f"cannot write records to {out}: {reason}") from error
    return {
        "out": str(out),
        "splits": {
            name: {
                "images": sum(entry["records"] for entry in split["shards"]),
                "shards": len(split["shards"]),
                "bytes": sum(entry["bytes"] for entry in split["shards"]),
            }
            for name, split in index["splits"].items()
        },
    }


def _write_all(source: Source, folder: Path, shards: int) -> dict[str, Any]:
    splits = {name: getattr(source, name) for name in layout.SPLITS}
    index = {
        "version": layout.VERSION,
        "classes": list(source.classes),
        "image_shape": source.image_shape,
        "splits": {
            name: _write_split(name, split, folder, shards)
            for name, split in splits.items()
            if split is not None
        },
    }
    index["sha256"] = layout.index_digest(index)
    (folder / layout.INDEX).write_text(json.dumps(index, indent=2) + "\n")
    return index


def _write_split(name: str, split: Split, folder: Path, shards: int) -> dict[str, Any]:
    parts = np.array_split(np.arange(len(split)), min(shards, len(split)))
    entries = []
    lengths = []
    with progress_bar(f"Writing {name}", len(split)) as advance:
        for number, indices in enumerate(parts):
            path = folder / f"{name}-{number:05d}-of-{len(parts):05d}.tfrecord"
            lengths.append(_write_shard(path, split, indices, advance))
            entries.append({"records": len(indices), **_entry(path)})
    offsets_path = folder / f"{name}.index.npz"
    _write_offsets(offsets_path, lengths, split.labels)
    return {"shards": entries, "offsets": _entry(offsets_path)}


def _write_shard(
    path: Path, split: Split, indices: np.ndarray, advance: Callable[[int], None]
) -> np.ndarray:
    def encode(indices: tf.Tensor) -> tf.Tensor:
        if isinstance(split, EncodedSplit):
            return split.read(indices)
        return parallel_map(tf.io.encode_png, split.gather(indices), tf.TensorSpec((), tf.string))

    chunks = tf.data.Dataset.from_tensor_slices(indices).batch(_CHUNK_IMAGES)
    chunks = chunks.map(lambda rows: (rows, encode(rows))).prefetch(1)
    lengths: list[int] = []
    with tf.io.TFRecordWriter(str(path)) as writer:
        for rows, images in chunks.as_numpy_iterator():
            for image, label in zip(images, split.labels[rows].tolist(), strict=True):
                lengths.append(_write_one(writer, image, label))
            advance(len(rows))
    return np.array(lengths, np.int64)


def _write_one(writer: tf.io.TFRecordWriter, image: bytes, label: int) -> int:
    feature = {
        "image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
        "label": tf.train.Feature(int64_list=tf.train.Int64List(value=[label])),
    }
    record = tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
    writer.write(record)
    return len(record)


def _write_offsets(path: Path, lengths: list[np.ndarray], labels: np.ndarray) -> None:
    shard = [np.full(len(part), number) for number, part in enumerate(lengths)]
    frame = layout.FRAME_BYTES
    offset = [np.cumsum(part + frame) - part - frame + layout.HEADER_BYTES for part in lengths]
    columns = [*(np.concatenate(parts) for parts in (shard, offset, lengths)), labels]
    arrays: dict[str, Any] = dict(zip(layout.ARRAYS, columns, strict=True))
    np.savez(path, **arrays)


def _entry(path: Path) -> dict[str, Any]:
    return {"file": path.name, "bytes": path.stat().st_size, "sha256": file_digest(path)}
