"""Images, batches and random numbers that several tests use."""

import io
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from distcnn.data.augment import Randomness

CLASSES = 5


def pixels(height, width, seed=0):
    """A smooth colour image, so that JPEG keeps it nearly as it is."""
    random = np.random.default_rng(seed)
    small = Image.fromarray(random.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    return np.asarray(small.resize((width, height), Image.Resampling.BICUBIC))


def encoded(array, image_format, mode=None, **options):
    image = Image.fromarray(array)
    buffer = io.BytesIO()
    (image.convert(mode) if mode else image).save(buffer, image_format, **options)
    return buffer.getvalue()


def batch(count: int, side: int = 12, channels: int = 3, seed: int = 0) -> tuple[Any, Any]:
    """Images whose rows, columns and channels all differ, and one-hot labels."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, side, side + 2, channels), dtype=np.uint8)
    labels = np.eye(CLASSES, dtype=np.float32)[rng.integers(0, CLASSES, count)]
    return images, labels


def randomness(count: int, step: int = 0, offset: int = 0, total: int | None = None) -> Randomness:
    return Randomness(tf.constant([21, step], tf.int64), offset, count, total or count)
