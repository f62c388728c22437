import contextlib
import json
import os
import zipfile
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data import tfrecord_format as layout
from distcnn.data.caching import load
from distcnn.data.sources import open_source
from distcnn.data.tfrecord_writer import write_records
from distcnn.errors import DataError, UsageError


def read(split):
    return split.gather(tf.range(len(split), dtype=tf.int64)).numpy()


def open_records(folder) -> Any:
    return open_source(DataConfig(name="tfrecord", dir=str(folder)))


@pytest.fixture
def digits():
    return open_source(DataConfig(name="synthetic", synthetic_examples=30))


@pytest.fixture
def records(digits, tmp_path):
    write_records(digits, tmp_path / "records", 4)
    return tmp_path / "records"


def test_arrays_come_back_as_they_were(digits, tmp_path):
    summary = write_records(digits, tmp_path / "new" / "records", 4)
    assert summary["splits"]["train"]["images"] == 30
    assert summary["splits"]["train"]["shards"] == 4
    assert summary["splits"]["test"]["shards"] == 3
    assert list((tmp_path / "new").iterdir()) == [tmp_path / "new" / "records"]
    source = open_records(tmp_path / "new" / "records")
    assert source.classes == digits.classes
    assert source.image_shape == (32, 32, 3)
    assert source.validation is None
    for stored, split in ((digits.train, source.train), (digits.test, source.test)):
        assert split.labels.dtype == np.int64
        np.testing.assert_array_equal(split.labels, stored.labels)
        np.testing.assert_array_equal(read(split), read(stored))


def test_folder_bytes_are_kept(image_folder, tmp_path):
    folder: Any = open_source(DataConfig(name="folder", dir=str(image_folder)))
    write_records(folder, tmp_path / "records", 5)
    source = open_records(tmp_path / "records")
    assert source.image_shape is None
    order = np.array([11, 0, 7, 3])
    part = source.train.subset(order)
    assert part.labels.tolist() == [1, 0, 1, 0]
    expected = folder.train.read(tf.constant(order)).numpy().tolist()
    dataset = tf.data.Dataset.range(4).batch(3).map(part.read)
    assert np.concatenate([b.numpy() for b in dataset]).tolist() == expected
    config = DataConfig(name="tfrecord", dir=str(tmp_path / "records"), cache="memory")
    loaded = load(source.train, (8, 8, 3), config)
    np.testing.assert_array_equal(read(loaded), read(folder.train.resized((8, 8, 3))))


def test_tensorflow_reads_the_shards(records, digits):
    paths = [str(path) for path in sorted(records.glob("train-*.tfrecord"))]
    parsed = [
        tf.io.parse_single_example(record, layout.FEATURES)
        for record in tf.data.TFRecordDataset(paths)
    ]
    assert [int(example["label"]) for example in parsed] == digits.train.labels.tolist()


def test_fingerprint_depends_on_content_and_order(records, digits, tmp_path):
    train = open_records(records).train
    assert open_records(records).train.fingerprint() == train.fingerprint()
    assert train.subset(np.arange(30)[::-1]).fingerprint() != train.fingerprint()


def test_bad_images_are_named(image_folder, tmp_path):
    (image_folder / "train" / "dog" / "b.JPEG").write_text("no image")
    folder: Any = open_source(DataConfig(name="folder", dir=str(image_folder)))
    write_records(folder, tmp_path / "records", 1)
    config = DataConfig(name="tfrecord", dir=str(tmp_path / "records"))
    with pytest.raises(DataError, match=r"1 of 12 .*00001\.tfrecord, record at byte \d+ \(not an"):
        load(open_records(tmp_path / "records").train, (4, 4, 3), config)


def test_damage_is_named(records):
    shard = records / "train-00002-of-00004.tfrecord"
    whole = shard.read_bytes()
    shard.write_bytes(whole[:50] + bytes([whole[50] ^ 1]) + whole[51:])
    with pytest.raises(DataError, match=r"train-00002-of-00004\.tfrecord was changed"):
        open_records(records)
    shard.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=r"00002-of-00004\.tfrecord has \d+ bytes; expected \d+"):
        open_records(records)
    shard.unlink()
    with pytest.raises(DataError, match=r"00002-of-00004\.tfrecord is missing"):
        open_records(records)


def test_a_shard_cut_or_changed_after_opening_is_named(records):
    read_last = tf.function(open_records(records).train.read)
    shard = records / "train-00003-of-00004.tfrecord"
    whole = shard.read_bytes()
    read_last(tf.constant([29], tf.int64))
    shard.write_bytes(whole[:-100])
    with pytest.raises(tf.errors.OpError, match=r"00003-of-00004\.tfrecord was cut during the run"):
        read_last(tf.constant([29], tf.int64))
    shard.write_bytes(whole[:-100] + bytes([whole[-100] ^ 1]) + whole[-99:])
    with pytest.raises(tf.errors.OpError, match=r"00003-of-00004\.tfrecord was changed"):
        read_last(tf.constant([29], tf.int64))
    shard.write_bytes(whole)
    read_last(tf.constant([29], tf.int64))


def edit_offsets(folder, **changes):
    path = folder / "train.index.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **(arrays | changes))
    expect_offsets(folder)


def expect_offsets(folder):
    from distcnn.data.tfrecord_writer import _entry

    index = json.loads((folder / "index.json").read_text())
    index["splits"]["train"]["offsets"] = _entry(folder / "train.index.npz")
    index.pop("sha256", None)
    (folder / "index.json").write_text(json.dumps(index))


def test_offsets_that_do_not_fit_are_refused(records):
    labels = open_records(records).train.labels
    edit_offsets(records, label=labels + 1)
    with pytest.raises(DataError, match="labels from 1 to 10; expected 0 to 9"):
        open_records(records)
    edit_offsets(records, label=labels, shard=np.zeros(30, np.int64))
    with pytest.raises(DataError, match="does not match the records"):
        open_records(records)
    (records / "train.index.npz").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"train\.index\.npz has 7 bytes; expected \d+"):
        open_records(records)
    expect_offsets(records)
    (records / "train.index.npz").write_bytes(b"NOTHING")
    with pytest.raises(DataError, match=r"train\.index\.npz was changed: its sha256 is"):
        open_records(records)
    expect_offsets(records)
    with pytest.raises(DataError, match="is not an offsets file"):
        open_records(records)
    (records / "train.index.npz").unlink()
    with pytest.raises(DataError, match=r"train\.index\.npz is missing"):
        open_records(records)


@pytest.mark.parametrize(
    ("name", "value"),
    [("shard", -1), ("shard", 1 << 60), ("offset", -1), ("length", 1 << 62), ("length", -1)],
)
def test_offsets_beyond_their_shard_are_refused(name, value, records):
    with np.load(records / "train.index.npz") as stored:
        column = stored[name]
    column[7] = value
    edit_offsets(records, **{name: column})
    with pytest.raises(DataError, match="does not match the records"):
        open_records(records)


def npy(header, pixels=b""):
    text = header.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + pixels


@pytest.mark.parametrize(
    "member",
    [
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (1000000000000,), }"),
        npy("{'descr': '<i8', 'fortran_order': False, 'shape': (30,), }", bytes(100)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (30,), }", bytes(240)),
        npy("(" * 110),
        b"\x93NUMPY\x09\x00",
        b"",
        bytes(1 << 28),
    ],
    ids=["huge", "short", "objects", "deep", "version", "empty", "bomb"],
)
def test_offsets_of_absurd_size_are_refused(member, records):
    path = records / "train.index.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in layout.ARRAYS:
            archive.writestr(f"{name}.npy", member[: None if name == "shard" else 8])
    expect_offsets(records)
    with pytest.raises(DataError, match="is not an offsets file"):
        open_records(records)


def test_index_errors(records, tmp_path):
    with pytest.raises(DataError, match=r"contains no index\.json"):
        open_records(tmp_path)
    for text in ("{", "[]", "{}"):
        (records / "index.json").write_text(text)
        with pytest.raises(DataError, match="is not an index"):
            open_records(records)
    (records / "index.json").write_text("[" * 100_000)
    with pytest.raises(DataError, match="is not an index"):
        open_records(records)
    (records / "index.json").write_text('{"version": 2}')
    with pytest.raises(DataError, match="format version 2; expected 1"):
        open_records(records)


def test_a_shard_that_is_no_file_does_not_stop_the_reader(records):
    shard = records / "train-00002-of-00004.tfrecord"
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(DataError, match=r"00002-of-00004\.tfrecord cannot be read: it is not"):
        open_records(records)


def test_a_changed_index_is_refused(records):
    path = records / "index.json"
    original = path.read_text()
    assert '"7",' in original
    path.write_text(original.replace('"7",', '"6",'))
    with pytest.raises(DataError, match=r"index\.json does not match its checksum; copy it again"):
        open_records(records)
    path.write_text(original.replace('"sha256": "', '"sha257": "'))
    with pytest.raises(DataError, match="does not match its checksum"):
        open_records(records)
    path.write_text(json.dumps(json.loads(original)))  # other spaces
    assert open_records(records).classes[7] == "7"


def test_an_index_of_an_older_version_has_no_checksum(records):
    index = json.loads((records / "index.json").read_text())
    assert set(index) == {"version", "classes", "image_shape", "splits", "sha256"}
    del index["sha256"]
    (records / "index.json").write_text(json.dumps(index))
    assert len(open_records(records).train) == 30


@pytest.mark.parametrize("value", [None, 3, "x", [], {}, [1], {"a": 1}, [None], -1, 1.5, True])
def test_a_damaged_index_is_never_an_internal_error(value, records):
    path = records / "index.json"
    content = json.loads(path.read_text())
    content.pop("sha256")  # an older folder has none
    original = json.dumps(content)

    def places(part, where=()):
        if isinstance(part, dict | list):
            for key in part if isinstance(part, dict) else range(len(part)):
                yield (*where, key)
                yield from places(part[key], (*where, key))

    for place in list(places(json.loads(original))):
        index = json.loads(original)
        part = index
        for key in place[:-1]:
            part = part[key]
        part[place[-1]] = value
        path.write_text(json.dumps(index))
        allowed = (
            (place == ("image_shape",) and value is None)
            or (place == ("splits",) and value == {})
            or (place[0] == "classes" and len(place) == 2 and value == "x")
            or (place[0] == "image_shape" and len(place) == 2 and value == 3)
            or (place[0] == "version" and value is True)
        )
        with (
            contextlib.nullcontext() if allowed else pytest.raises(DataError, match=r"index|shard")
        ):
            open_records(records)


def test_writer_refuses_and_leaves_nothing(digits, image_folder, tmp_path):
    with pytest.raises(UsageError, match="at least 1"):
        write_records(digits, tmp_path / "out", 0)
    with pytest.raises(UsageError, match="already exists"):
        write_records(digits, image_folder, 1)
    (tmp_path / "plain").write_text("x")
    with pytest.raises(UsageError, match="already exists"):
        write_records(digits, tmp_path / "plain", 1)
    with pytest.raises(DataError, match="cannot write records"):
        write_records(digits, tmp_path / "plain" / "out", 1)
    folder: Any = open_source(DataConfig(name="folder", dir=str(image_folder)))
    (image_folder / "test" / "dog" / "a.jpg").unlink()
    with pytest.raises(DataError, match=r"cannot write records .*dog/a\.jpg"):
        write_records(folder, tmp_path / "out", 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["images", "plain"]
    (tmp_path / "empty").mkdir()
    write_records(digits, tmp_path / "empty", 1)
    assert len(open_records(tmp_path / "empty").train) == 30
