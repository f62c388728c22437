"""Decodes image files inside an exported graph, which holds operations of TensorFlow alone.

The pixels are those that training decodes. Its own decoding calls Python, which a graph that is
served elsewhere cannot.
"""

from typing import Any

import tensorflow as tf

from distcnn.data.decode_plan import FIRST_TRANSPOSED, RATIOS, turn_upright
from distcnn.data.framing import Framing, Shape
from distcnn.data.image_header import JPEG, PNG
from distcnn.data.resize import to_channels
from distcnn.inference.exporting.exif import jpeg_orientation

_OTHERS = (b"GIF8", b"BM")


def decode_files(contents: tf.Tensor, image_shape: Shape, framing: Framing) -> tf.Tensor:
    """Decodes JPEG, PNG, GIF and BMP files and brings them to the input of a model.

    Args:
        contents: string tensor of shape `(batch,)`, the bytes of the files.
        image_shape: `(height, width, channels)` of the model's input.
        framing: Which part of each image is used, and how it is resized.

    Returns:
        uint8 tensor of shape `(batch, *image_shape)`.
    """
    return tf.map_fn(
        lambda file: _decode(file, image_shape, framing),
        contents,
        fn_output_signature=tf.TensorSpec(image_shape, tf.uint8),
    )


def _decode(contents: tf.Tensor, image_shape: Shape, framing: Framing) -> tf.Tensor:
    is_jpeg = _starts_with(contents, JPEG)
    known = tf.reduce_any([is_jpeg, *(_starts_with(contents, each) for each in (PNG, *_OTHERS))])
    expected = "the bytes are no image of a format that is decoded: JPEG, PNG, GIF or BMP"
    with tf.control_dependencies([tf.debugging.Assert(known, [expected])]):
        contents = tf.identity(contents)
    pixels, content, orientation = tf.cond(
        is_jpeg,
        lambda: _jpeg(contents, image_shape, framing),
        lambda: _other(contents, image_shape, framing),
    )
    resized = tf.image.resize(tf.ensure_shape(pixels, (None, None, 3)), content, antialias=True)
    resized = to_channels(resized, image_shape[2])
    # As `data.resize` rounds whole images, and parts of them.
    rounded = tf.round(resized) if framing.is_whole else resized + 0.5
    image = turn_upright(tf.cast(rounded, tf.uint8), orientation)
    missing = tf.constant(image_shape) - tf.shape(image)
    padded = tf.pad(image, tf.stack([missing // 2, missing - missing // 2], axis=1))
    return tf.ensure_shape(padded, image_shape)


def _starts_with(contents: tf.Tensor, magic: bytes) -> tf.Tensor:
    return tf.strings.substr(contents, 0, len(magic)) == magic


def _jpeg(contents: tf.Tensor, image_shape: Shape, framing: Framing) -> tuple[Any, ...]:
    """Returns the decoded part of a JPEG file, the size it is brought to, and its orientation."""
    stored = tf.io.extract_jpeg_shape(contents, output_type=tf.int32)[:2]
    orientation = jpeg_orientation(contents)
    transposed = orientation >= FIRST_TRANSPOSED
    upright = _exchanged_if(transposed, stored)
    sides, content = _frame(upright, image_shape, framing)
    # The part is in the centre, so that turning it moves it by one pixel at most.
    sides = _exchanged_if(transposed, sides)
    content = _exchanged_if(transposed, content)
    corner = _corner(stored, sides, orientation)
    step = (
        _reduction(sides, content) if framing.reduced and not framing.is_whole else tf.constant(0)
    )
    ratio = tf.gather(tf.constant(RATIOS), step)
    window = _window(corner, sides, stored, ratio)

    def at(ratio: int) -> Any:
        return lambda: tf.raw_ops.DecodeAndCropJpeg(
            contents=contents, crop_window=window, channels=3, ratio=ratio
        )

    pixels = tf.switch_case(step, [at(ratio) for ratio in RATIOS])
    return pixels, content, orientation


def _other(contents: tf.Tensor, image_shape: Shape, framing: Framing) -> tuple[Any, ...]:
    pixels = tf.io.decode_image(contents, channels=3, expand_animations=False)
    stored = tf.shape(pixels)[:2]
    sides, content = _frame(stored, image_shape, framing)
    corner = (stored - sides) // 2
    part = tf.slice(pixels, [corner[0], corner[1], 0], [sides[0], sides[1], 3])
    return part, content, tf.constant(1)


def _frame(size: tf.Tensor, image_shape: Shape, framing: Framing) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sides of the part that is used, and of what it becomes: see `Framing`."""
    target = tf.constant(image_shape[:2])
    sides = _largest_within(target, size) if framing.resize == "crop" else size
    fraction = tf.cast(sides, tf.float64) * framing.crop_fraction
    sides = tf.clip_by_value(tf.cast(tf.round(fraction), tf.int32), 1, size)
    content = _largest_within(size, target) if framing.resize == "pad" else target
    return sides, content


def _largest_within(ratio: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Returns the largest size of an aspect ratio within limits, rounded, at least 1."""
    by, most = tf.cast(ratio, tf.float64), tf.cast(limits, tf.float64)
    fits_height = most[0] * by[1] <= most[1] * by[0]
    by_height = tf.stack([most[0], tf.round(most[0] * by[1] / by[0])])
    by_width = tf.stack([tf.round(most[1] * by[0] / by[1]), most[1]])
    return tf.maximum(tf.cast(tf.where(fits_height, by_height, by_width), tf.int32), 1)


def _corner(stored: tf.Tensor, sides: tf.Tensor, orientation: tf.Tensor) -> tf.Tensor:
    """Returns the upper left corner, in stored pixels, of a part in the centre of the upright one.

    Rounding down is towards the upper left of the upright image, hence up along a turned axis.
    """
    upside_down = tf.reduce_any(orientation == tf.constant([3, 4, 7, 8]))
    mirrored = tf.reduce_any(orientation == tf.constant([2, 3, 6, 7]))
    transposed = orientation >= FIRST_TRANSPOSED
    turned = tf.cast(tf.stack([upside_down, mirrored]), tf.int32)
    turned = _exchanged_if(transposed, turned)
    return (stored - sides + turned) // 2


def _exchanged_if(condition: tf.Tensor, pair: tf.Tensor) -> tf.Tensor:
    return tf.where(condition, tf.reverse(pair, [0]), pair)


def _reduction(sides: tf.Tensor, content: tf.Tensor) -> tf.Tensor:
    """Returns the position in `RATIOS` of the smallest size that need not be enlarged."""
    factor = tf.maximum(tf.reduce_min(sides // content), 1)
    return tf.reduce_sum(tf.cast(tf.constant(RATIOS) <= factor, tf.int32)) - 1


def _window(corner: tf.Tensor, sides: tf.Tensor, size: tf.Tensor, ratio: tf.Tensor) -> tf.Tensor:
    """Returns top, left, height and width in the pixels of an image decoded at 1 / ratio."""
    limits = -(-size // ratio)
    exact = tf.cast(ratio, tf.float64)

    def scaled(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(tf.round(tf.cast(pixels, tf.float64) / exact), tf.int32)

    first = tf.minimum(scaled(corner), limits - 1)
    return tf.concat([first, tf.minimum(tf.maximum(scaled(sides), 1), limits - first)], 0)
