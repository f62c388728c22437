"""Learnable synthetic images for benchmarks; never a substitute for missing data."""

import numpy as np

from distcnn.config import DataConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.split import Source

_CLASSES = 10
_SHAPE = (32, 32, 3)
_NOISE = 64


def open_synthetic(config: DataConfig) -> Source:
    """Generates images, a pattern per class plus uniform noise, the same on every call.

    Args:
        config: `synthetic_examples` is the number of training images; there are a tenth as many
            test images, but at least one.

    Returns:
        A source of 10 classes with images of shape `(32, 32, 3)`.
    """
    patterns = np.random.default_rng(0).integers(
        0, 256 - _NOISE, size=(_CLASSES, *_SHAPE), dtype=np.uint8
    )
    count = config.synthetic_examples
    return Source(
        name=config.name,
        classes=tuple(str(label) for label in range(_CLASSES)),
        train=_generate(patterns, count, seed=1),
        validation=None,
        test=_generate(patterns, max(1, count // 10), seed=2),
        image_shape=_SHAPE,
    )


def _generate(patterns: np.ndarray, count: int, seed: int) -> ArraySplit:
    labels = np.arange(count, dtype=np.int64) % _CLASSES
    images = np.random.default_rng(seed).integers(0, _NOISE, size=(count, *_SHAPE), dtype=np.uint8)
    images += patterns[labels]
    return ArraySplit(images, labels)
