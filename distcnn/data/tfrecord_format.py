"""The format of a folder of record shards, shared by the reader and the writer.

`index.json` lists the classes, the image shape (null if it varies) and, for each split, its shards
and its offsets file; `sha256` is the checksum of everything else in it, which older folders lack.
`<split>.index.npz` contains, for each record in order, the int64 arrays `shard`, `offset` (of the
payload in the shard), `length` (of the payload) and `label`. A record is a `tf.train.Example` with
the features `image` (bytes of an image file) and `label` (int64).
"""

import hashlib
import json
from typing import Any

import tensorflow as tf

VERSION = 1
INDEX = "index.json"
KEYS = {"version", "classes", "image_shape", "splits", "sha256"}
SPLITS = ("train", "validation", "test")
ARRAYS = ("shard", "offset", "length", "label")
FEATURES = {
    "image": tf.io.FixedLenFeature((), tf.string),
    "label": tf.io.FixedLenFeature((), tf.int64),
}
# https://www.tensorflow.org/tutorials/load_data/tfrecord: uint64 length, uint32 checksum of
# the length, payload, uint32 checksum of the payload.
HEADER_BYTES = 12
FRAME_BYTES = 16


def index_digest(index: dict[str, Any]) -> str:
    """Returns the checksum of the content of `index.json`, whatever its order and spaces."""
    content = {key: value for key, value in index.items() if key != "sha256"}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
