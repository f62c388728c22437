"""The operations of RandAugment (Cubuk et al. 2019, arXiv:1909.13719) on batches of images.

Strengths follow the paper's table, with its magnitude M / 10 as a number from 0 to 1, where 1 is
always strongest (in the authors' code, posterize and solarize get weaker as M grows, and the four
enhancing operations do nothing at M = 5). Rotation and shear are about the centre and bilinear;
pixels from outside the image are grey 128.
"""

import math
from collections.abc import Callable

import tensorflow as tf

OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "solarize",
    "posterize",
    "color",
    "contrast",
    "brightness",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)
"""Names of the operations in the order of their indices, the geometric ones last."""

MAX_ENHANCE = 0.9
"""Largest distance from 1 of the factor of color, contrast, brightness and sharpness."""
MAX_POSTERIZE = 4
"""Most bits per pixel that posterize drops."""
MAX_ROTATE = math.radians(30)
"""Largest angle of rotate."""
MAX_SHEAR = 0.3
"""Largest slope of shear_x and shear_y."""
MAX_TRANSLATE = 0.45
"""Largest shift of translate_x and translate_y, as a fraction of the side (150 of 331 pixels)."""
FILL = 128.0
"""Value of pixels from outside the image."""

_GEOMETRIC = OPERATIONS.index("rotate")


def apply_operations(
    images: tf.Tensor, operation: tf.Tensor, sign: tf.Tensor, magnitude: float
) -> tf.Tensor:
    """Applies one operation to each image.

    The batch is partitioned by operation and stitched together again, so that each image is
    computed once, not once per operation. The geometric operations share one transformation.

    Args:
        images: uint8 or float32 tensor of shape `(count, height, width, 1 or 3)`, from 0 to 255.
        operation: int32 tensor of shape `(count,)`, indices into `OPERATIONS`.
        sign: float32 tensor of shape `(count,)` of -1 or 1, the direction of the operation.
        magnitude: Strength from 0 to 1.

    Returns:
        Tensor of the shape and dtype of `images`, from 0 to 255.
    """
    group = tf.minimum(operation, _GEOMETRIC)
    groups = _GEOMETRIC + 1
    positions = tf.dynamic_partition(tf.range(tf.size(group)), group, groups)
    parts = [tf.cast(tf.gather(images, position), tf.float32) for position in positions]
    for index, name in enumerate(OPERATIONS[:_GEOMETRIC]):
        signs = tf.gather(sign, positions[index])[:, None, None, None]
        parts[index] = _PIXEL_OPERATIONS[name](parts[index], signs, magnitude)
    geometric = positions[_GEOMETRIC]
    parts[_GEOMETRIC] = _transform(
        parts[_GEOMETRIC], tf.gather(operation, geometric), tf.gather(sign, geometric), magnitude
    )
    varied = to_dtype(tf.dynamic_stitch(positions, parts), images.dtype)
    return tf.ensure_shape(varied, images.shape)


def to_grey(images: tf.Tensor) -> tf.Tensor:
    """Returns the luma (ITU-R 601-2) of the pixels: float32, `(count, height, width, 1)`."""
    if images.shape[-1] == 1:
        return images
    return tf.reduce_sum(images * [0.299, 0.587, 0.114], axis=-1, keepdims=True)


def mean_grey(grey: tf.Tensor) -> tf.Tensor:
    """Returns each image's mean: float32, `(count, 1, 1, 1)`.

    It sums integers, which is exact, so the result does not depend on how the batch is sharded.
    """
    whole = tf.cast(tf.round(grey), tf.int32)
    total = tf.reduce_sum(whole, axis=[1, 2, 3], keepdims=True)
    return tf.cast(total / tf.reduce_prod(tf.shape(grey)[1:]), tf.float32)


def to_dtype(images: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Clips to [0, 255] and, for an integer dtype, rounds to the nearest value."""
    clipped = tf.clip_by_value(images, 0.0, 255.0)
    return clipped if dtype == tf.float32 else tf.cast(tf.round(clipped), dtype)


def _identity(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    del sign, magnitude
    return images


def _autocontrast(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Stretches each channel to the full range."""
    del sign, magnitude
    low = tf.reduce_min(images, axis=[1, 2], keepdims=True)
    spread = tf.reduce_max(images, axis=[1, 2], keepdims=True) - low
    return tf.where(spread > 0, (images - low) * tf.math.divide_no_nan(255.0, spread), images)


def _equalize(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Equalizes the histogram of each channel, with the integer steps of `PIL.ImageOps`."""
    del sign, magnitude
    shape = tf.shape(images)
    count, channels = shape[0], shape[3]
    values = tf.cast(images, tf.int32)
    table = tf.range(count)[:, None, None, None] * channels + tf.range(channels)
    bins = values + 256 * table
    flat = tf.reshape(bins, [-1])
    histogram = tf.math.unsorted_segment_sum(tf.ones_like(flat), flat, count * channels * 256)
    histogram = tf.reshape(histogram, [count, channels, 256])
    brightest = tf.reduce_max(values, axis=[1, 2])
    last = tf.gather(histogram, brightest[..., None], axis=2, batch_dims=2)
    step = (shape[1] * shape[2] - last) // 255
    below = tf.cumsum(histogram, axis=2, exclusive=True)
    equalized = tf.minimum((step // 2 + below) // tf.maximum(step, 1), 255)
    equalized = tf.where(step > 0, equalized, tf.range(256))
    return tf.cast(tf.gather(tf.reshape(equalized, [-1]), bins), tf.float32)


def _solarize(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Inverts the pixels at or above a threshold."""
    del sign
    return tf.where(images < 256 * (1 - magnitude), images, 255 - images)


def _posterize(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Drops the lowest bits."""
    del sign
    step = 2.0 ** round(MAX_POSTERIZE * magnitude)
    return tf.floor(images / step) * step if step > 1 else images


def _color(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Changes the saturation; leaves grey images, which have none, unchanged."""
    if images.shape[-1] == 1:
        return images
    return _enhance(images, to_grey(images), sign, magnitude)


def _contrast(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    return _enhance(images, mean_grey(to_grey(images)), sign, magnitude)


def _brightness(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    return _enhance(images, tf.zeros([]), sign, magnitude)


def _sharpness(images: tf.Tensor, sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    """Moves away from or towards `PIL.ImageFilter.SMOOTH`; keeps the border pixels."""
    rows = images[:, :-2] + images[:, 1:-1] + images[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = (box + 4 * images[:, 1:-1, 1:-1]) / 13
    factor = _factor(sign, magnitude)
    inner = (factor - 1) * (images[:, 1:-1, 1:-1] - smooth)
    return images + tf.pad(inner, [[0, 0], [1, 1], [1, 1], [0, 0]])


def _enhance(
    images: tf.Tensor, degenerate: tf.Tensor, sign: tf.Tensor, magnitude: float
) -> tf.Tensor:
    return degenerate + _factor(sign, magnitude) * (images - degenerate)


def _factor(sign: tf.Tensor, magnitude: float) -> tf.Tensor:
    return 1 + MAX_ENHANCE * magnitude * sign


_PIXEL_OPERATIONS: dict[str, Callable[[tf.Tensor, tf.Tensor, float], tf.Tensor]] = {
    "identity": _identity,
    "autocontrast": _autocontrast,
    "equalize": _equalize,
    "solarize": _solarize,
    "posterize": _posterize,
    "color": _color,
    "contrast": _contrast,
    "brightness": _brightness,
    "sharpness": _sharpness,
}


def _transform(
    images: tf.Tensor, operation: tf.Tensor, sign: tf.Tensor, magnitude: float
) -> tf.Tensor:
    """Rotates, shears or translates each image."""
    size = tf.shape(images)[1:3]
    height, width = tf.unstack(tf.cast(size, tf.float32))
    strength = magnitude * sign

    def where_drawn(name: str, value: tf.Tensor) -> tf.Tensor:
        return tf.where(operation == OPERATIONS.index(name), value, 0.0)

    # Sines of a constant: computed per image, they could differ between shards in the last bit.
    turn = where_drawn("rotate", tf.sign(strength) * math.sin(MAX_ROTATE * magnitude))
    scale = 1 + where_drawn("rotate", tf.fill(tf.shape(sign), math.cos(MAX_ROTATE * magnitude) - 1))
    x_of_y = where_drawn("shear_x", MAX_SHEAR * strength) - turn
    y_of_x = where_drawn("shear_y", MAX_SHEAR * strength) + turn
    x_shift = where_drawn("translate_x", tf.round(MAX_TRANSLATE * width * strength))
    y_shift = where_drawn("translate_y", tf.round(MAX_TRANSLATE * height * strength))
    x_centre, y_centre = (width - 1) / 2, (height - 1) / 2
    zero = tf.zeros_like(sign)
    # Rows of the matrix that maps output pixels to input positions.
    x_row = [scale, x_of_y, x_centre - scale * x_centre - x_of_y * y_centre + x_shift]
    y_row = [y_of_x, scale, y_centre - scale * y_centre - y_of_x * x_centre + y_shift]
    return tf.raw_ops.ImageProjectiveTransformV3(
        images=images,
        transforms=tf.stack([*x_row, *y_row, zero, zero], axis=1),
        output_shape=size,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
        fill_value=FILL,
    )
