"""Pixel ranges that models expect."""

from typing import Literal

import numpy as np
import tensorflow as tf

PixelRange = Literal["unit", "signed", "byte"]
"""Range of the pixels that a model expects: [0, 1], [-1, 1] or [0, 255]."""

PIXEL_RANGES: dict[str, tuple[float, float]] = {
    "unit": (1 / 255, 0.0),
    "signed": (2 / 255, -1.0),
    "byte": (1.0, 0.0),
}
"""Scale and offset that map stored pixels in [0, 255] to each range."""


def scale_pixels(images: tf.Tensor, pixels: PixelRange) -> tf.Tensor:
    """Maps stored pixels to the range that a model expects.

    Args:
        images: uint8 or float32 tensor, values in [0, 255].
        pixels: Name of the range.

    Returns:
        float32 tensor of the same shape.
    """
    scale, offset = PIXEL_RANGES[pixels]
    return tf.cast(images, tf.float32) * scale + offset


def made_up_images(image_shape: tuple[int, int, int]) -> np.ndarray:
    """Returns a black, a white and two noisy images, the same at each call.

    Returns:
        uint8 of shape `(4, *image_shape)`.
    """
    images = np.random.default_rng(0).integers(0, 256, (4, *image_shape), np.uint8)
    images[0], images[1] = 0, 255
    return images
