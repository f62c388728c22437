"""Directories of TensorFlow Datasets, written by hand as that package writes them."""

import json

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.sources import open_source
from distcnn.errors import DataError
from tests.data.samples import encoded, pixels


def feature(values):
    if isinstance(values[0], bytes):
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def write_shard(path, numbers):
    with tf.io.TFRecordWriter(str(path)) as writer:
        for number in numbers:
            values = {
                "image": feature([encoded(pixels(5, 7, seed=number), "PNG")]),
                "label": feature([number % 3]),
                "id": feature([b"x" * number]),
            }
            example = tf.train.Example(features=tf.train.Features(feature=values))
            writer.write(example.SerializeToString())


@pytest.fixture
def prepared(tmp_path):
    folder = tmp_path / "tiny" / "1.0.0"
    folder.mkdir(parents=True)
    write_shard(folder / "tiny-train.tfrecord-00000-of-00002", range(7))
    write_shard(folder / "tiny-train.tfrecord-00001-of-00002", range(7, 12))
    write_shard(folder / "tiny-test.tfrecord-00000-of-00001", range(20, 24))
    splits = [
        {"name": "train", "shardLengths": ["7", "5"]},
        {
            "name": "test",
            "shardLengths": ["4"],
            "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
        },
    ]
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "tfrecord", "splits": splits}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    image = {"pythonClassName": "tensorflow_datasets.core.features.image_feature.Image"}
    label = {
        "pythonClassName": "tensorflow_datasets.core.features.class_label_feature.ClassLabel",
        "classLabel": {"numClasses": "3"},
    }
    features = {"featuresDict": {"features": {"image": image, "label": label}}}
    (folder / "features.json").write_text(json.dumps(features))
    (folder / "label.labels.txt").write_text("ant\nbee\ncow\n")
    return folder


def opened(folder, **options):
    return open_source(DataConfig(name="tfds", dir=str(folder), **options))


def test_images_and_labels(prepared):
    source = opened(prepared.parent.parent / "tiny")
    assert source.classes == ("ant", "bee", "cow")
    assert source.train.labels.tolist() == [number % 3 for number in range(12)]
    assert source.test.labels.tolist() == [number % 3 for number in range(20, 24)]
    images = source.train.resized((5, 7, 3)).gather(tf.constant([0, 11], tf.int64)).numpy()
    np.testing.assert_array_equal(images, [pixels(5, 7, seed=0), pixels(5, 7, seed=11)])
    again = opened(prepared)  # by the index in the cache
    assert again.content_hash() == source.content_hash()


def test_what_is_damaged_or_something_else_is_named(prepared):
    shard = prepared / "tiny-test.tfrecord-00000-of-00001"
    content = shard.read_bytes()
    shard.write_bytes(content[:-5])
    with pytest.raises(DataError, match="is cut off at byte"):
        opened(prepared)
    shard.unlink()
    with pytest.raises(DataError, match=r"tfrecord-00000-of-00001 is missing; prepare"):
        opened(prepared)
    text = (prepared / "features.json").read_text()
    (prepared / "features.json").write_text(text.replace("ClassLabel", "Sequence"))
    with pytest.raises(DataError, match=r"label \(Sequence\); expected image \(Image\)"):
        opened(prepared)
    with pytest.raises(DataError, match=r"holds no dataset_info\.json"):
        opened(prepared.parent.parent / "elsewhere")
