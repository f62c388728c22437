import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.data.sources import open_source
from distcnn.errors import DataError
from tests.data.samples import encoded, pixels


def open_folder(root, **options):
    return open_source(DataConfig(name="folder", dir=str(root), **options))


def test_opens_sorted_classes_and_files(image_folder):
    (image_folder / "train" / "cat" / ".hidden").write_text("x")
    (image_folder / "train" / "cat" / "Thumbs.db").write_text("x")
    (image_folder / "train" / ".DS_Store").write_text("x")
    source = open_folder(image_folder)
    assert source.classes == ("cat", "dog")
    assert source.image_shape is None
    assert source.validation is None
    assert source.train.labels.tolist() == [0] * 6 + [1] * 6
    assert source.train.labels.dtype == np.int64
    assert source.test.labels.tolist() == [0, 0, 1, 1]
    assert source.train.describe(7) == str(image_folder / "train" / "dog" / "b.JPEG")


def test_gather_in_a_graph_equals_direct(image_folder):
    split = open_folder(image_folder).train.resized((8, 8, 3))
    dataset = tf.data.Dataset.range(len(split)).batch(5).map(split.gather, num_parallel_calls=2)
    read = np.concatenate([batch.numpy() for batch in dataset])
    np.testing.assert_array_equal(read, split.gather(tf.range(12, dtype=tf.int64)).numpy())
    part = split.subset(np.array([7, 2]))
    assert part.labels.tolist() == [1, 0]
    np.testing.assert_array_equal(part.gather(tf.constant([0, 1])).numpy(), read[[7, 2]])


def test_gather_without_a_size_is_refused(image_folder):
    with pytest.raises(ValueError, match="resized"):
        open_folder(image_folder).train.gather(tf.constant([0]))


def test_val_and_test_only(image_folder):
    shutil.copytree(image_folder / "test", image_folder / "val")
    assert len(open_folder(image_folder).validation) == 4
    shutil.rmtree(image_folder / "train")
    shutil.rmtree(image_folder / "val")
    source = open_folder(image_folder)
    assert source.train is None
    assert source.classes == ("cat", "dog")


def test_fingerprint_follows_the_files(image_folder):
    before = open_folder(image_folder).train.fingerprint()
    assert open_folder(image_folder).train.fingerprint() == before
    assert open_folder(image_folder).train.subset(np.arange(11)).fingerprint() != before
    os.utime(image_folder / "train" / "cat" / "a.jpg", ns=(1, 1))
    assert open_folder(image_folder).train.fingerprint() != before


def test_strays_fail_or_are_left_out(image_folder, caplog):
    (image_folder / "train" / "cat" / "notes.txt").write_text("x")
    (image_folder / "train" / "dog" / "more").mkdir()
    with pytest.raises(DataError, match=r"2 entries .*notes\.txt; expected .*on_error skip"):
        open_folder(image_folder)
    assert len(open_folder(image_folder, on_error="skip").train) == 12
    assert "2 entries" in caplog.text


def test_layout_errors(tmp_path, image_folder):
    def message(root):
        with pytest.raises(DataError) as caught:
            open_folder(root)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "does not exist" in message(tmp_path / "missing")
    (tmp_path / "file").write_text("x")
    assert "is a file" in message(tmp_path / "file")
    (tmp_path / "empty").mkdir()
    assert "is empty" in message(tmp_path / "empty")
    assert f"move them to {image_folder / 'train'}/train" in message(image_folder / "train")
    (tmp_path / "other" / "stuff").mkdir(parents=True)
    assert "neither a train nor a test folder" in message(tmp_path / "other")
    (tmp_path / "bare" / "train").mkdir(parents=True)
    assert "contains no class folders" in message(tmp_path / "bare")
    (image_folder / "val").mkdir()
    assert "val contains no class folders" in message(image_folder)
    (image_folder / "val" / "emu").mkdir()
    (image_folder / "val" / "emu" / "a.png").write_bytes(encoded(pixels(4, 4), "PNG"))
    assert "emu is a class that" in message(image_folder)
    shutil.rmtree(image_folder / "val")
    (image_folder / "train" / "empty_class").mkdir()
    assert "empty_class contains no images" in message(image_folder)
