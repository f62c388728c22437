"""Resizes images, the same way for every source."""

import tensorflow as tf

from distcnn.data.split import Shape

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow convert to grey


def resize_images(images: tf.Tensor, image_shape: Shape) -> tf.Tensor:
    """Stretches images to a size and converts between grey and colour.

    Bilinear with antialiasing; the aspect ratio is not kept. Grey images become colour by repeating
    the channel, colour images become grey by their luma.

    Args:
        images: uint8 tensor of shape `(batch, height, width, channels)`, channels 1 or 3; height
            and width may be unknown until the graph runs.
        image_shape: Target `(height, width, channels)`.

    Returns:
        uint8 tensor of shape `(batch,) + image_shape`.
    """
    height, width, channels = image_shape
    resized = tf.image.resize(images, (height, width), antialias=True)
    if channels == 1 and images.shape[-1] == 3:
        resized = tf.tensordot(resized, tf.constant(_LUMA), axes=1)[..., tf.newaxis]
    elif channels == 3 and images.shape[-1] == 1:
        resized = tf.repeat(resized, 3, axis=-1)
    return tf.saturate_cast(tf.round(resized), tf.uint8)
