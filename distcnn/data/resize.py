"""Resizes images, the same way for every source."""

import tensorflow as tf

from distcnn.data.framing import Shape

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601, as JPEG and Pillow convert to grey

FEW_PIXELS = 4
"""Up to so many times the pixels of the result are few for `resize_image`."""


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
    return tf.saturate_cast(tf.round(to_channels(resized, channels)), tf.uint8)


def resize_image(
    image: tf.Tensor, size: tf.Tensor, channels: int, *, antialias: bool, few_pixels: bool = False
) -> tf.Tensor:
    """Resizes one image to a size that may be known only when the graph runs.

    Args:
        image: uint8 tensor of shape `(height, width, 1 or 3)`.
        size: int32 tensor of shape `(2,)`, height and width.
        channels: 1 or 3.
        antialias: Whether an image that is shrunk is filtered.
        few_pixels: Whether the image has at most a few times the pixels of the result. Then it is
            converted to float32 before it is resized without a filter: TensorFlow interpolates
            float32 with vector instructions, and bytes one by one. The result is the same.

    Returns:
        uint8 tensor of shape `(*size, channels)`.
    """
    if few_pixels and not antialias:
        image = tf.cast(image, tf.float32)
    resized = to_channels(tf.image.resize(image, size, antialias=antialias), channels)
    # Weighted means of bytes; adding a half takes fewer passes than rounding and saturating.
    return tf.cast(resized + 0.5, tf.uint8)


def to_channels(resized: tf.Tensor, channels: int) -> tf.Tensor:
    """Converts float images, `(..., 1 or 3)`, to grey or colour."""
    if channels == 1 and resized.shape[-1] == 3:
        resized = tf.tensordot(resized, tf.constant(_LUMA), axes=1)[..., tf.newaxis]
    elif channels == 3 and resized.shape[-1] == 1:
        resized = tf.repeat(resized, 3, axis=-1)
    return resized
