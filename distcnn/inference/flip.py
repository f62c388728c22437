"""Test-time flip: averages the outputs for an image and its mirror image."""

from collections.abc import Callable

import tensorflow as tf


def mean_over_flip(classify: Callable[[tf.Tensor], tf.Tensor], images: tf.Tensor) -> tf.Tensor:
    """Returns the mean of the outputs for each image and for its mirror image.

    Args:
        classify: Maps images to outputs of shape `(batch, classes)`.
        images: Tensor of shape `(batch, height, width, channels)`.

    Returns:
        Tensor of shape `(batch, classes)`.
    """
    both = classify(tf.concat([images, tf.reverse(images, [2])], 0))
    own, mirrored = tf.split(both, 2)
    return (own + mirrored) / 2
