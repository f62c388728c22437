"""Data without splits: class folders, test images drawn by name, some of the classes."""

import shutil
from typing import Any

import numpy as np
import pytest

from distcnn.config import DataConfig
from distcnn.data.dataset import load_dataset, load_split
from distcnn.data.pipeline import BalancedSampler
from distcnn.data.sources import open_source
from distcnn.data.strata import draw, strata_of
from distcnn.errors import DataError, UsageError
from tests.data.samples import encoded, pixels


@pytest.fixture
def flat(tmp_path):
    """Three class folders with 30, 12 and 5 images."""
    root = tmp_path / "flat"
    for name, count in (("ant", 30), ("bee", 12), ("cow", 5)):
        (root / name).mkdir(parents=True)
        for number in range(count):
            content = encoded(pixels(6, 6, seed=count + number), "PNG")
            (root / name / f"{number:02}.png").write_bytes(content)
    return root


def opened(root, seed=21, **options):
    return open_source(DataConfig(name="folder", dir=str(root), **options), seed)


def files(split):
    return {split.describe(index) for index in range(len(split))}


def test_class_folders_are_divided_by_seed_and_name(flat, tmp_path):
    config = DataConfig(name="folder", dir=str(flat))
    source = opened(flat, 5)
    assert source.classes == ("ant", "bee", "cow")
    assert np.bincount(source.test.labels).tolist() == [3, 1, 1]
    assert np.bincount(source.train.labels).tolist() == [27, 11, 4]
    assert "5 of 47 images held out" in source.division
    assert "train.seed 5" in source.division
    assert not files(source.test) & files(source.train)
    assert files(opened(flat, 5).test) == files(source.test)
    assert files(opened(flat, 6).test) != files(source.test)
    # Neither where the folder is nor a new file moves the others.
    moved = shutil.copytree(flat, tmp_path / "elsewhere")
    (moved / "ant" / "new.png").write_bytes(encoded(pixels(6, 6, seed=99), "PNG"))
    again = {name.replace("elsewhere", "flat") for name in files(opened(moved, 5).test)}
    assert len(again - files(source.test)) <= 1
    # A run trains without them, and its evaluation finds them again.
    dataset: Any = load_dataset(config, source, (6, 6, 3), 5)
    assert len(dataset.train) + len(dataset.validation) == 42
    assert "for validation" in dataset.division
    part: Any = load_split(config, opened(flat, 5), (6, 6, 3), 5, "test")
    every = np.arange(len(part))
    np.testing.assert_array_equal(part.gather(every), dataset.test.gather(every))


def test_fractions_of_the_test_images(flat, image_folder):
    def parts(root, **options):
        source = opened(root, **options)
        return [len(part or ()) for part in (source.train, source.test)]

    assert parts(flat, test_split=0.0) == [47, 0]
    assert parts(flat, test_split=1.0) == [0, 47]
    assert parts(flat, test_split=0.4) == [47 - 19, 19]
    with pytest.raises(UsageError, match="test images of its own"):
        parts(image_folder, test_split=0.2)
    shutil.rmtree(image_folder / "test")
    assert parts(image_folder) == [12, 0]
    assert parts(image_folder, test_split=0.5) == [6, 6]
    for number in range(1, 5):
        (flat / "cow" / f"{number:02}.png").unlink()
    with pytest.raises(DataError, match=r"the class cow of .* has 1 image"):
        parts(flat)


def test_strata():
    labels = np.array([[1, 0, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]] * 50, bool)
    drawn = draw(strata_of(labels), [str(i).encode() for i in range(200)], 0.2, 0)
    assert labels[drawn].sum(0).tolist() == [30, 10, 10]
    numbers = np.random.default_rng(0).normal(size=(200, 1)).astype(np.float32)
    drawn = draw(strata_of(numbers), [str(i).encode() for i in range(200)], 0.25, 0)
    assert np.bincount(strata_of(numbers)[drawn]).tolist() == [5] * 10


def test_some_of_the_classes(flat):
    source = opened(flat, classes="cow, ant")
    assert source.classes == ("ant", "cow")
    assert np.bincount(source.train.labels).tolist() == [27, 4]
    assert all("bee" not in name for name in files(source.train) | files(source.test))
    with pytest.raises(DataError, match=r"data.classes has 'cat'.*did you mean"):
        opened(flat, classes="ant,cat")
    digits: Any = open_source(DataConfig(name="digits", classes="3,5"))
    assert set(digits.train.labels) == {0, 1}


def test_smaller_classes_are_seen_more_often():
    labels = np.array([0] * 7 + [1] * 3 + [2] * 2)
    sampler = BalancedSampler.of(labels, 4, seed=3)
    assert sampler.examples == 21
    order = sampler.permutation(0)
    assert np.bincount(labels[order]).tolist() == [7, 7, 7]
    seen = np.bincount(order, minlength=12)
    assert seen[:7].tolist() == [1] * 7
    assert sorted(seen[7:10]) == [2, 2, 3]
    np.testing.assert_array_equal(order, BalancedSampler.of(labels, 7, seed=3).permutation(0))
    assert order.tolist() != sampler.permutation(1).tolist()
