"""Mirrors images of a batch."""

import tensorflow as tf


def mirror(images: tf.Tensor, mirrored: tf.Tensor) -> tf.Tensor:
    """Mirrors some images horizontally; works inside a graph.

    Args:
        images: Tensor of shape `(batch, height, width, channels)`.
        mirrored: Which of them, bool tensor of shape `(batch,)`.

    Returns:
        Tensor of the shape and dtype of `images`.
    """
    height, width, channels = images.shape[1:]
    positions = tf.range(tf.shape(images)[0])
    chosen = tf.boolean_mask(positions, mirrored)
    # With rank 3, because TensorFlow reverses its rows fast.
    rows = tf.reshape(tf.gather(images, chosen), [-1, width, channels])
    flipped = tf.reshape(tf.reverse(rows, [1]), [-1, height, width, channels])
    # Where two images have the same index, the stitch uses the later one.
    return tf.dynamic_stitch([positions, chosen], [images, flipped])
