import io
from typing import Any

import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.dataset import load_dataset, load_split
from distcnn.data.progress import progress_bar
from distcnn.data.sources import open_source
from distcnn.data.split import Source
from distcnn.data.validation_split import split_train_validation
from distcnn.errors import DataError


def read(split):
    return split.gather(np.arange(len(split))).numpy()


def test_digits():
    source: Any = open_source(DataConfig(name="digits"))
    assert (len(source.train), len(source.test)) == (1437, 360)
    assert source.classes == tuple("0123456789")
    assert source.image_shape == source.train.image_shape == (8, 8, 1)
    assert source.train.labels.dtype == np.int64
    images = read(source.train)
    assert (images.min(), images.max()) == (0, 255)
    assert np.bincount(source.test.labels).min() >= 34
    again: Any = open_source(DataConfig(name="digits"))
    np.testing.assert_array_equal(read(again.test), read(source.test))
    assert not {i.tobytes() for i in images} & {i.tobytes() for i in read(source.test)}


def test_synthetic_is_repeatable_and_can_be_learned():
    source: Any = open_source(DataConfig(name="synthetic", synthetic_examples=200))
    again: Any = open_source(DataConfig(name="synthetic", synthetic_examples=200))
    train, test = read(source.train).astype(float), read(source.test).astype(float)
    np.testing.assert_array_equal(read(again.train), train)
    assert train.shape == (200, 32, 32, 3)
    assert test.shape == (20, 32, 32, 3)
    means = np.stack([train[source.train.labels == label].mean(axis=0) for label in range(10)])
    distance = ((test[:, None] - means) ** 2).sum(axis=(2, 3, 4))
    np.testing.assert_array_equal(distance.argmin(axis=1), source.test.labels)
    smallest: Any = open_source(DataConfig(name="synthetic", synthetic_examples=1))
    assert len(smallest.test) == 1


def labelled(labels):
    labels = np.array(labels)
    images = np.zeros((len(labels), 1, 1, 1), np.uint8)
    images[:, 0, 0, 0] = np.arange(len(labels))
    return ArraySplit(images, labels)


def test_validation_split_is_stratified_sorted_and_complete():
    train = labelled([0] * 40 + [1] * 20 + [2] * 40)
    kept, validation = split_train_validation(train, 0.1, seed=3)
    assert np.bincount(validation.labels).tolist() == [4, 2, 4]
    kept_rows, held_rows = read(kept).ravel().tolist(), read(validation).ravel().tolist()
    assert kept_rows == sorted(kept_rows)
    assert held_rows == sorted(held_rows)
    assert sorted(kept_rows + held_rows) == list(range(100))
    same = read(split_train_validation(train, 0.1, seed=3)[1]).ravel().tolist()
    other = read(split_train_validation(train, 0.1, seed=4)[1]).ravel().tolist()
    assert same == held_rows != other


@pytest.mark.parametrize(
    ("labels", "fraction", "message"),
    [
        ([0, 0, 0, 1], 0.5, "label 1 has 1 training image"),
        ([0] * 10 + [1] * 10, 0.05, "is 1; expected at least one image of each of 2 classes"),
        ([0, 0, 1, 1], 0.9, "is 4; expected at least one"),
    ],
)
def test_too_few_images_to_split(labels, fraction, message):
    with pytest.raises(DataError, match=message):
        split_train_validation(labelled(labels), fraction, seed=0)


def test_a_single_class_is_refused():
    split = labelled([0] * 9)
    source = Source("digits", ("only",), split, None, split, (1, 1, 1))
    config = DataConfig(name="digits")
    with pytest.raises(DataError, match="digits has 1 class; expected at least 2"):
        load_dataset(config, source, (1, 1, 1), 0)
    with pytest.raises(DataError, match="digits has 1 class; expected at least 2"):
        load_split(config, source, (1, 1, 1), 0, "test")


def test_the_file_of_labels_is_named_where_it_has_no_such_images():
    split = labelled([0, 1] * 9)
    source = Source("labels", ("a", "b"), None, None, split, (1, 1, 1))
    config = DataConfig(labels="labels.csv", dir="images")
    with pytest.raises(DataError, match=r"^labels\.csv contains no training images"):
        load_split(config, source, (1, 1, 1), 0, "validation")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "delay", "shown"),
    [(Terminal(), 0.0, True), (Terminal(), 60.0, False), (io.StringIO(), 0.0, False)],
)
def test_progress_bar_only_on_a_terminal_and_late(stream, delay, shown, monkeypatch):
    monkeypatch.setattr("sys.stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("Decoding", 10, delay=delay) as advance:
        advance(4)
    assert ("Decoding" in stream.getvalue()) == shown
