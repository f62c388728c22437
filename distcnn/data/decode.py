"""Decodes the bytes of an image file."""

import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from distcnn.data.resize import resize_images
from distcnn.data.split import Shape

# TensorFlow reads BMP too, but mistakes the palette indices of an 8-bit BMP for grey levels.
_NATIVE_MAGIC = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8")


# A graph even when called eagerly, so that every failure is an OpError.
@tf.function(autograph=False)
def decode_image(contents: tf.Tensor, image_shape: Shape) -> tf.Tensor:
    """Decodes one image file and stretches it to `image_shape`; works inside a graph.

    JPEG, PNG and GIF (first frame) are decoded by TensorFlow, every other format (BMP, WebP, TIFF,
    ...) by Pillow. The format is detected from the first bytes, not from the file name.
    Transparency is dropped, 16-bit channels are reduced to 8, EXIF orientation is ignored.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.
        image_shape: Target `(height, width, channels)`, with 1 (grey) or 3 (colour) channels.

    Returns:
        uint8 tensor of shape `image_shape`.

    Raises:
        tf.errors.OpError: The bytes are not a complete image.
    """
    native = tf.reduce_any(
        [tf.strings.substr(contents, 0, len(magic)) == magic for magic in _NATIVE_MAGIC]
    )
    pixels = tf.cond(
        native,
        lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
        lambda: tf.numpy_function(_decode_with_pillow, [contents], tf.uint8, stateful=False),
    )
    pixels = tf.ensure_shape(pixels, (None, None, 3))
    return resize_images(pixels[tf.newaxis], image_shape)[0]


def failure_reason(error: tf.errors.OpError) -> str:
    """Extracts from a TensorFlow error the line that explains what is wrong with an image."""
    text = re.split(r"\n\t \[\[|\nTraceback| \[Op:", error.message)[0]
    line = text.strip().splitlines()[-1]
    line = re.sub(r"^(\{\{.*?\}\} )?(.* Iterator::\S+: )?", "", line)
    return re.sub(r"^[\w.]*(Error|error|Warning): ", "", line)


def _decode_with_pillow(contents: bytes) -> np.ndarray:
    if not contents:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(contents)) as image:
            if image.mode.startswith("I;16"):
                grey = (np.asarray(image) >> 8).astype(np.uint8)
                return np.repeat(grey[..., np.newaxis], 3, axis=-1)
            if image.mode in ("I", "F"):
                raise ValueError(f"pixels of type {image.mode}; expected 8 or 16 bits per channel")
            # Via RGBA, which keeps the colour of transparent palette entries without a warning.
            return np.asarray(image.convert("RGBA").convert("RGB"))
    except Image.UnidentifiedImageError:
        raise ValueError("not an image in a format that Pillow reads") from None
