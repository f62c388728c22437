"""Decodes the bytes of an image file."""

import functools
import io
import re

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

from distcnn.data.decode_plan import (
    CONTENT,
    FIRST_TRANSPOSED,
    MAX_PIXELS,
    METHOD,
    MIRRORED,
    ORIENTATION,
    RATIOS,
    SIZE,
    WINDOW,
    orientations,
    turn_upright,
)
from distcnn.data.framing import Frame, Shape
from distcnn.data.image_header import FORMATS, JPEG, PNG, orientation_of
from distcnn.data.resize import resize_image, resize_images

_PNG_SIZE = 16  # offset of width and height, big-endian int32


# A graph even when called eagerly, so that every failure is an OpError.
@tf.function(autograph=False)
def decode_image(
    contents: tf.Tensor, image_shape: Shape, orientation: tf.Tensor | None = None
) -> tf.Tensor:
    """Decodes one image file and stretches it to `image_shape`; works inside a graph.

    JPEG and PNG are decoded by TensorFlow; GIF, BMP, WebP, TIFF and AVIF by Pillow. The format is
    detected from the first bytes, not from the file name. Of several frames only the first is
    decoded. Transparency is dropped, 16-bit channels are reduced to 8. The EXIF orientation is
    applied, except to PNG files.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.
        image_shape: Target `(height, width, channels)`, with 1 (grey) or 3 (colour) channels.
        orientation: EXIF orientation of a JPEG file, int32 scalar. Default: read from `contents`.

    Returns:
        uint8 tensor of shape `image_shape`.

    Raises:
        tf.errors.OpError: The bytes are not a complete image, or it has more than `MAX_PIXELS`.
    """
    if orientation is None:
        orientation = orientations(contents[tf.newaxis])[0]
    height, width, channels = image_shape
    pixels = _decode_whole(contents)[tf.newaxis]
    upright = tf.cond(
        orientation < FIRST_TRANSPOSED,
        lambda: resize_images(pixels, image_shape)[0],
        lambda: resize_images(pixels, (width, height, channels))[0],
    )
    return tf.ensure_shape(turn_upright(upright, orientation), image_shape)


@tf.function(autograph=False)
def decode_planned(
    contents: tf.Tensor, plan: tf.Tensor, image_shape: Shape, frame: Frame
) -> tf.Tensor:
    """Decodes the part of one image file that a plan names; works inside a graph.

    JPEG files are cut before they are decoded, the others after.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.
        plan: int32 tensor of shape `(PLAN_WIDTH,)`, from `plan_batch`.
        image_shape: Target `(height, width, channels)`, with 1 (grey) or 3 (colour) channels.
        frame: The frame that the plan is for.

    Returns:
        uint8 tensor of shape `image_shape`.

    Raises:
        tf.errors.OpError: As for `decode_image`.
    """
    window, orientation = plan[WINDOW], plan[ORIENTATION]

    def whole() -> tf.Tensor:
        pixels = _decode_whole(contents)
        same = tf.reduce_all(tf.shape(pixels)[:2] == plan[SIZE])
        with tf.control_dependencies(
            [tf.debugging.Assert(same, ["the size in its header is wrong"])]
        ):
            return tf.slice(pixels, [window[0], window[1], 0], [window[2], window[3], 3])

    def at(ratio: int) -> tf.Tensor:
        return tf.raw_ops.DecodeAndCropJpeg(
            contents=contents, crop_window=window, channels=3, ratio=ratio
        )

    branches = [
        whole,
        *(functools.partial(at, ratio) for ratio in RATIOS[: 4 if frame.reduced else 1]),
    ]
    pixels = tf.ensure_shape(tf.switch_case(plan[METHOD], branches), (None, None, 3))
    image = resize_image(pixels, plan[CONTENT], image_shape[2], antialias=frame.antialias)
    image = turn_upright(image, orientation)
    if frame.pads:
        missing = tf.constant(image_shape) - tf.shape(image)
        image = tf.pad(image, tf.stack([missing // 2, missing - missing // 2], axis=1))
    return tf.ensure_shape(image, image_shape)


@tf.function(autograph=False)
def decode_plain_crop(contents: tf.Tensor, plan: tf.Tensor, image_shape: Shape) -> tf.Tensor:
    """Decodes the part of one JPEG file whose plan is a plain crop; works inside a graph.

    It returns what `decode_planned` does, without the branches, which take a few per cent of the
    time.

    Args:
        contents: string tensor of shape `()`, the bytes of the file.
        plan: int32 tensor of shape `(PLAN_WIDTH,)`, from `plan_batch`.
        image_shape: Target `(height, width, channels)`, with 1 (grey) or 3 (colour) channels.

    Returns:
        uint8 tensor of shape `image_shape`.

    Raises:
        tf.errors.OpError: The bytes are not a complete JPEG file.
    """
    height, width, channels = image_shape
    pixels = tf.raw_ops.DecodeAndCropJpeg(contents=contents, crop_window=plan[WINDOW], channels=3)
    size = tf.constant((height, width))
    image = resize_image(pixels, size, channels, antialias=False, few_pixels=True)
    mirrored = plan[ORIENTATION] == MIRRORED
    image = tf.cond(mirrored, lambda: tf.reverse(image, [1]), lambda: image)
    return tf.ensure_shape(image, image_shape)


def _decode_whole(contents: tf.Tensor) -> tf.Tensor:
    """Decodes all pixels, as they are stored if it is a JPEG file."""

    def if_small(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cond(
            pixels <= MAX_PIXELS,
            lambda: tf.io.decode_image(contents, channels=3, expand_animations=False),
            with_pillow,
        )

    def with_pillow() -> tf.Tensor:
        return tf.numpy_function(_decode_with_pillow, [contents], tf.uint8, stateful=False)

    is_jpeg, is_png = (tf.strings.substr(contents, 0, len(magic)) == magic for magic in (JPEG, PNG))
    pixels = tf.cond(
        is_jpeg,
        lambda: if_small(_pixels_of_jpeg(contents)),
        lambda: tf.cond(is_png, lambda: if_small(_pixels_of_png(contents)), with_pillow),
    )
    return tf.ensure_shape(pixels, (None, None, 3))


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
    line = re.sub(r"^(\{\{.*?\}\} )?(.* \w*Iterator::\S+: )?", "", line)
    return re.sub(r"^[\w.]*(Error|error|Warning): ", "", line)


def _decode_with_pillow(contents: bytes) -> np.ndarray:
    if not contents:
        raise ValueError("the file is empty")
    try:
        with Image.open(io.BytesIO(contents), formats=FORMATS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise Image.DecompressionBombError
            image.load()  # Pillow's TIFF reader turns the pixels here
            return _to_rgb(ImageOps.exif_transpose(image) if orientation_of(image) > 1 else image)
    except Image.DecompressionBombError:
        raise ValueError(f"more than {MAX_PIXELS:,} pixels; expected a smaller image") from None
    except Image.UnidentifiedImageError:
        raise ValueError(f"not an image of a known format ({', '.join(FORMATS)})") from None


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
