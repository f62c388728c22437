"""Decodes the bytes of an image file."""

import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image

from distcnn.data.resize import resize_images
from distcnn.data.split import Shape

MAX_PIXELS = 178_956_970
"""Pixels of the largest image that is decoded: Pillow's own limit, here for every format."""

_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n"
_PNG_SIZE = 16  # offset of width and height, big-endian int32
# A closed list: Pillow has plug-ins for some 40 formats, of which EPS starts another program.
_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WebP", "TIFF", "AVIF")


# A graph even when called eagerly, so that every failure is an OpError.
@tf.function(autograph=False)
def decode_image(contents: tf.Tensor, image_shape: Shape) -> tf.Tensor:
    """Decodes one image file and stretches it to `image_shape`; works inside a graph.

    JPEG and PNG are decoded by TensorFlow; GIF, BMP, WebP, TIFF and AVIF by Pillow. The format is
    detected from the first bytes, not from the file name. Of several frames only the first is
    decoded. Transparency is dropped, 16-bit channels are reduced to 8, EXIF orientation is ignored.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.
        image_shape: Target `(height, width, channels)`, with 1 (grey) or 3 (colour) channels.

    Returns:
        uint8 tensor of shape `image_shape`.

    Raises:
        tf.errors.OpError: The bytes are not a complete image, or it has more than `MAX_PIXELS`.
    """

    def if_small(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            pixels <= MAX_PIXELS,
            lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
            with_pillow,
        )

    def with_pillow() -> tf.Tensor:
        return tf.numpy_function(_decode_with_pillow, [contents], tf.uint8, stateful=False)

    is_jpeg, is_png = (
        tf.strings.substr(contents, 0, len(magic)) == magic for magic in (_JPEG, _PNG)
    )
    pixels = tf.cond(
        is_jpeg,
        lambda: if_small(_pixels_of_jpeg(contents)),
        lambda: tf.cond(is_png, lambda: if_small(_pixels_of_png(contents)), with_pillow),
    )
    pixels = tf.ensure_shape(pixels, (None, None, 3))
    return resize_images(pixels[tf.newaxis], image_shape)[0]


def _pixels_of_jpeg(contents: tf.Tensor) -> tf.Tensor:
    shape = tf.io.extract_jpeg_shape(contents, output_type=tf.int32)
    return tf.reduce_prod(tf.cast(shape[:2], tf.int64))


def _pixels_of_png(contents: tf.Tensor) -> tf.Tensor:
    # Zeros make up for the header of a file that ends within it, which is then found incomplete.
    header = tf.strings.substr(contents, 0, _PNG_SIZE + 8) + tf.constant(bytes(_PNG_SIZE + 8))
    size = tf.strings.substr(header, _PNG_SIZE, 8)
    return tf.reduce_prod(tf.cast(tf.io.decode_raw(size, tf.int32, little_endian=False), tf.int64))


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
        with Image.open(io.BytesIO(contents), formats=_FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            return _to_rgb(image)
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels; expected a smaller image") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"not an image of a known format ({', '.join(_FORMATS)})") from None


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16"):
        grey = (np.asarray(image) >> 8).astype(np.uint8)
        return np.repeat(grey[..., np.newaxis], 3, axis=-1)
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode}; expected 8 or 16 bits per channel")
    if image.mode == "RGB":
        return np.asarray(image)
    # Via RGBA, which keeps the colour of transparent palette entries without a warning.
    return np.asarray(image.convert("RGBA").convert("RGB"))
