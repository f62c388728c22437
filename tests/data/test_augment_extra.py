"""An augmentation that is not built in."""

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import AugmentConfig
from distcnn.data.augment import Randomness, augment
from distcnn.errors import UsageError


def test_an_augmentation_of_ones_own_by_its_path():
    images = tf.zeros([6, 4, 4, 1], tf.uint8)
    labels = tf.eye(6)
    random = Randomness(tf.constant([1, 2], tf.int64), *(tf.constant(n) for n in (0, 6, 6)))
    config = AugmentConfig(extra={"tests.extension:invert": 0.5})
    varied, same = augment(images, labels, config, random)
    inverted = np.asarray(varied)[:, 0, 0, 0] == 255
    assert 0 < inverted.sum() < 6
    np.testing.assert_array_equal(same, labels)
    # The same images are inverted, however the batch is divided.
    second = Randomness(random.seed, *(tf.constant(n) for n in (4, 2, 6)))
    part, _ = augment(images[4:], labels[4:], config, second)
    np.testing.assert_array_equal(part, np.asarray(varied)[4:])
    with pytest.raises(UsageError, match=r"data\.augment\.extra is 'inverted'; expected one of"):
        augment(images, labels, AugmentConfig(extra={"inverted": 0.5}), random)
