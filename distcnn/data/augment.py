"""Random variation of training images: pure functions of whole batches, made for a `tf.data` graph.

Every random number is a function of (seed, step, position in the global batch): however the batch
is split over workers, and wherever a run is resumed, an image is varied in the same way. To keep
that exact to the bit, sums over pixels are taken in integers and no stage depends on its shard's
size.

The layers of Keras 3 are not used: they draw one row for each image of the batch they are called
with, so a shard's draws would depend on its size; RandAugment draws one operation for the whole
batch and ignores the seed it is given, and the format of the explicit transformations is private.
"""

import enum
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import tensorflow as tf

from distcnn.config import AugmentConfig
from distcnn.config.lookup import import_object, look_up
from distcnn.data import randaugment as ra

GREY = 128
"""Value of the pixels that cutout removes."""


class Stream(enum.IntEnum):
    """Number of the stream of random numbers that each stage draws from."""

    FLIP = 0
    CROP = 1
    COLOR = 2
    RANDAUGMENT = 3
    CUTOUT = 4
    MIXUP = 5
    CUTMIX_AREA = 6
    CUTMIX_CENTRE = 7
    MIXUP_OR_CUTMIX = 8


@dataclass(frozen=True)
class Randomness:
    """Random numbers of one shard of one global batch.

    The numbers are drawn for the global batch and then cut to the shard, so shards agree without
    communication. A stream is one of `Stream`, or the name of an augmentation that is not built in.

    Attributes:
        seed: Integer tensor of shape `(2,)` that identifies the batch: run seed and global step.
        offset: Integer scalar, position in the global batch of the shard's first image.
        count: Integer scalar, images in this shard.
        total: Integer scalar, images in the global batch.
    """

    seed: Any
    offset: Any
    count: Any
    total: Any

    def uniform(self, stream: int | str, width: int) -> tf.Tensor:
        """Draws from [0, 1): float32 tensor of shape `(count, width)`."""
        draws = tf.random.stateless_uniform(self._shape(width), seed=self._fold(stream))
        return self._shard(draws)

    def gamma(self, stream: int | str, width: int, alpha: float) -> tf.Tensor:
        """Draws from Gamma(alpha, 1): float32 tensor of shape `(count, width)`."""
        shape = self._shape(width)
        draws = tf.random.stateless_gamma(shape, seed=self._fold(stream), alpha=alpha)
        return self._shard(draws)

    def beta(self, stream: int | str, alpha: float) -> tf.Tensor:
        """Draws from Beta(alpha, alpha): float32 tensor of shape `(count,)`."""
        first, second = tf.unstack(self.gamma(stream, 2, alpha), axis=1)
        # For a tiny alpha both may underflow to 0; the limit is then 0 or 1, alike by symmetry.
        return tf.math.divide_no_nan(first, first + second)

    def scalar(self, stream: int | str) -> tf.Tensor:
        """Draws one float32 scalar from [0, 1), the same in every shard."""
        return tf.random.stateless_uniform([], seed=self._fold(stream))

    def partner(self) -> tf.Tensor:
        """Returns who is mixed with whom: int32 indices into the shard, shape `(count,)`.

        The partner of global position p is p XOR 1. Where that lies outside the shard (an odd
        batch's last image, shards that begin or end between the two), an image is its own partner.
        """
        local = tf.range(tf.cast(self.count, tf.int32))
        offset = tf.cast(self.offset, tf.int32)
        other = tf.bitwise.bitwise_xor(local + offset, 1) - offset
        inside = (other >= 0) & (other < tf.cast(self.count, tf.int32))
        return tf.where(inside, other, local)

    def _fold(self, stream: int | str) -> tf.Tensor:
        number = zlib.crc32(stream.encode()) >> 1 if isinstance(stream, str) else int(stream)
        return tf.random.fold_in(self.seed, number)

    def _shape(self, width: int) -> tf.Tensor:
        return tf.stack([tf.cast(self.total, tf.int32), width])

    def _shard(self, draws: tf.Tensor) -> tf.Tensor:
        offset = tf.cast(self.offset, tf.int32)
        return draws[offset : offset + tf.cast(self.count, tf.int32)]


def augment(
    images: tf.Tensor, labels: tf.Tensor, config: AugmentConfig, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies the augmentations that are switched on.

    The order is flip, crop, colour, RandAugment, cutout, then mixup or CutMix (if both are on, one
    of them for the whole global batch, half and half), then label smoothing, then those of
    `config.extra`.

    Args:
        images: uint8 or float32 tensor of shape `(count, height, width, 1 or 3)`, from 0 to 255.
        labels: float32 tensor of shape `(count, classes)`, rows that sum to 1.
        config: The augmentations and their strengths.
        random: The random numbers of this shard.

    Returns:
        Images of the same shape and dtype (float32 if mixup is on), and labels of the same shape.

    Raises:
        UsageError: If `config.extra` names an augmentation that does not exist.
    """
    for name, strength in _strengths(config).items():
        if strength:
            key = "data.augment.extra"
            is_path = ":" in name
            apply = import_object(name, key) if is_path else look_up(key, name, AUGMENTATIONS)
            shape = images.shape
            images, labels = apply(images, labels, strength, random)
            images = tf.ensure_shape(images, shape)
    return images, labels


def _strengths(config: AugmentConfig) -> dict[str, Any]:
    """Returns the strength of every augmentation by name, in the order of application."""
    mixing: dict[str, Any] = {"mixup": config.mixup, "cutmix": config.cutmix}
    if all(mixing.values()):
        mixing = {"mixup_or_cutmix": (config.mixup, config.cutmix)}
    operations, magnitude = config.randaugment, config.randaugment_magnitude
    return {
        "flip": config.flip,
        "crop": config.crop,
        "color": config.color,
        "randaugment": (operations, magnitude) if operations else None,
        "cutout": config.cutout,
        **mixing,
        "label_smoothing": config.label_smoothing,
        **config.extra,
    }


def flip(images: tf.Tensor, random: Randomness) -> tf.Tensor:
    """Mirrors each image left to right with probability one half."""
    height, width, channels = images.shape[1:]
    everyone = tf.range(tf.shape(images)[0])
    chosen = tf.boolean_mask(everyone, random.uniform(Stream.FLIP, 1)[:, 0] < 0.5)
    # Of rank 3, as TensorFlow has a fast reversal of rows for it.
    rows = tf.reshape(tf.gather(images, chosen), [-1, width, channels])
    mirrored = tf.reshape(tf.reverse(rows, [1]), [-1, height, width, channels])
    # Of two images for one place, the stitch takes the later.
    return tf.dynamic_stitch([everyone, chosen], [images, mirrored])


def pad_and_crop(images: tf.Tensor, padding: int, random: Randomness) -> tf.Tensor:
    """Pads `padding` pixels of zeros on every side, then cuts a random window of the old size.

    The window's offset is uniform over the `(2 padding + 1)^2` possible ones, per image.
    """
    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    draws = random.uniform(Stream.CROP, 2)
    corner = tf.cast(draws * (2 * padding + 1), tf.int32)
    beside = padding * channels
    row = width * channels + 2 * beside
    above, below = padding * row, padding * row + 2 * beside
    # Two paddings of rank 2 take a quarter of the time of one of rank 4.
    rows = tf.pad(tf.reshape(images, [-1, width * channels]), [[0, 0], [beside, beside]])
    padded = tf.pad(tf.reshape(rows, [-1, height * row]), [[0, 0], [above, below]])
    # From a window's first pixel on, its rows are copied as one piece, 4 times as fast as pixels
    # are gathered: out of the tensor in serialised form, which ends with its elements in order.
    data, size = tf.io.serialize_tensor(padded), images.dtype.size
    first = tf.strings.length(data) + tf.range(-count, 0) * (above + height * row + below) * size
    start = first + corner[:, 0] * (row * size) + corner[:, 1] * (channels * size)
    pieces = tf.strings.substr(data, start, tf.fill([count], height * row * size))
    windows = tf.reshape(tf.io.decode_raw(pieces, images.dtype), [-1, row])
    # What lies beside the window came along.
    return tf.reshape(windows[:, : width * channels], [-1, height, width, channels])


def color_jitter(images: tf.Tensor, strength: float, random: Randomness) -> tf.Tensor:
    """Changes brightness, contrast and saturation of each image.

    The factors are uniform in `[max(0, 1 - strength), 1 + strength]`. Contrast moves pixels from
    the image's mean grey, saturation from the pixel's own grey; as all three are linear they are
    one step, clipped to [0, 255] once at its end.
    """
    lowest = max(0.0, 1 - strength)
    draws = random.uniform(Stream.COLOR, 3) * (1 + strength - lowest) + lowest
    brightness, contrast, saturation = tf.unstack(draws[:, None, None, None], axis=-1)
    pixels = tf.cast(images, tf.float32)
    grey = ra.to_grey(pixels)
    gain = brightness * contrast
    varied = (gain * saturation) * pixels + (gain - gain * saturation) * grey
    varied += (brightness - gain) * ra.mean_grey(grey)
    return ra.to_dtype(varied, images.dtype)


def randaugment(
    images: tf.Tensor, operations: int, magnitude: float, random: Randomness
) -> tf.Tensor:
    """Applies RandAugment (Cubuk et al. 2019, arXiv:1909.13719).

    Args:
        images: uint8 or float32 tensor of shape `(count, height, width, 1 or 3)`, from 0 to 255.
        operations: Rounds; in each, every image gets one of `randaugment.OPERATIONS` at random.
        magnitude: Strength from 0 to 1, the paper's M / 10; the sign is random.
        random: The random numbers of this shard.

    Returns:
        Images of the same shape and dtype.
    """
    draws = random.uniform(Stream.RANDAUGMENT, 2 * operations)
    for column in range(0, 2 * operations, 2):
        operation = tf.cast(draws[:, column] * len(ra.OPERATIONS), tf.int32)
        sign = tf.where(draws[:, column + 1] < 0.5, -1.0, 1.0)
        images = ra.apply_operations(images, operation, sign, magnitude)
    return images


def cutout(images: tf.Tensor, side: int, random: Randomness) -> tf.Tensor:
    """Greys out one square of `side` pixels (DeVries and Taylor 2017, arXiv:1708.04552).

    Its centre is a uniformly random pixel; what lies outside the image is cut off.
    """
    size = tf.shape(images)[1:3]
    centre = tf.cast(random.uniform(Stream.CUTOUT, 2) * tf.cast(size, tf.float32), tf.int32)
    corner = centre - side // 2
    grey = tf.fill(tf.shape(images), tf.cast(GREY, images.dtype))
    return _paste(images, grey, corner, corner + side)


def mixup(
    images: tf.Tensor, labels: tf.Tensor, alpha: float, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Blends each image and label with its partner's (Zhang et al. 2018, arXiv:1710.09412).

    The weight `lambda ~ Beta(alpha, alpha)` of the image itself is drawn for each image of its own,
    so the two partners differ. For pairs see `Randomness.partner`.

    Returns:
        float32 images and labels.
    """
    partner = random.partner()
    weight = random.beta(Stream.MIXUP, alpha)
    own, other = tf.cast(images, tf.float32), tf.cast(tf.gather(images, partner), tf.float32)
    mixed = other + weight[:, None, None, None] * (own - other)
    return mixed, _mix_labels(labels, partner, weight)


def cutmix(
    images: tf.Tensor, labels: tf.Tensor, alpha: float, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box of its partner into each image (Yun et al. 2019, arXiv:1905.04899).

    The box has the image's proportions and the share `1 - lambda` of its area, `lambda ~
    Beta(alpha, alpha)`, rounded down to whole pixels, around a uniformly random pixel; every image
    has a box of its own. Labels are weighted by the pixels that are left after the box is cut off
    at the border. For pairs see `Randomness.partner`.

    Returns:
        Images of the same dtype, and labels.
    """
    size = tf.shape(images)[1:3]
    extent = tf.cast(size, tf.float32)
    fraction = tf.sqrt(1 - random.beta(Stream.CUTMIX_AREA, alpha))
    side = tf.cast(fraction[:, None] * extent, tf.int32)
    centre = tf.cast(random.uniform(Stream.CUTMIX_CENTRE, 2) * extent, tf.int32)
    begin = tf.maximum(centre - side // 2, 0)
    end = tf.minimum(centre - side // 2 + side, size)
    partner = random.partner()
    replaced = tf.reduce_prod(end - begin, axis=1) / tf.reduce_prod(size)
    weight = 1 - tf.cast(replaced, tf.float32)
    mixed = _paste(images, tf.gather(images, partner), begin, end)
    return mixed, _mix_labels(labels, partner, weight)


def smooth_labels(labels: tf.Tensor, smoothing: float) -> tf.Tensor:
    """Spreads the share `smoothing` evenly over all classes (Szegedy et al. 2016, section 7)."""
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]


def mixup_or_cutmix(
    images: tf.Tensor, labels: tf.Tensor, alphas: tuple[float, float], random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies mixup or CutMix, each with probability one half, to the whole global batch."""

    def boxed() -> tuple[tf.Tensor, tf.Tensor]:
        mixed, weighted = cutmix(images, labels, alphas[1], random)
        return tf.cast(mixed, tf.float32), weighted

    mixed, weighted = tf.cond(
        random.scalar(Stream.MIXUP_OR_CUTMIX) < 0.5,
        lambda: mixup(images, labels, alphas[0], random),
        boxed,
    )
    return tf.ensure_shape(mixed, images.shape), tf.ensure_shape(weighted, labels.shape)


def _mix_labels(labels: tf.Tensor, partner: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    fraction = weight[:, None]
    return fraction * labels + (1 - fraction) * tf.gather(labels, partner)


def _paste(images: tf.Tensor, patch: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Replaces the pixels from `begin` to `end` (row and column, `(count, 2)`) by those of `patch`.

    Columns and channels are one axis here: a mask without broadcasting is twice as fast.
    """
    count, height, width, channels = tf.unstack(tf.shape(images))
    rows, columns = tf.range(height), tf.repeat(tf.range(width), channels)
    in_rows = (rows >= begin[:, :1]) & (rows < end[:, :1])
    in_columns = (columns >= begin[:, 1:]) & (columns < end[:, 1:])
    inside = in_rows[:, :, None] & in_columns[:, None, :]
    flat = [count, height, width * channels]
    pasted = tf.where(inside, tf.reshape(patch, flat), tf.reshape(images, flat))
    return tf.ensure_shape(tf.reshape(pasted, tf.shape(images)), images.shape)


Augmentation = Callable[[tf.Tensor, tf.Tensor, Any, Randomness], tuple[tf.Tensor, tf.Tensor]]
"""From images, labels, strength and random numbers to images and labels of the same shapes."""

AUGMENTATIONS: dict[str, Augmentation] = {
    "flip": lambda images, labels, _, random: (flip(images, random), labels),
    "crop": lambda images, labels, padding, random: (pad_and_crop(images, padding, random), labels),
    "color": lambda images, labels, strength, random: (
        color_jitter(images, strength, random),
        labels,
    ),
    "randaugment": lambda images, labels, settings, random: (
        randaugment(images, settings[0], settings[1], random),
        labels,
    ),
    "cutout": lambda images, labels, side, random: (cutout(images, side, random), labels),
    "mixup": mixup,
    "cutmix": cutmix,
    "mixup_or_cutmix": mixup_or_cutmix,
    "label_smoothing": lambda images, labels, smoothing, _: (
        images,
        smooth_labels(labels, smoothing),
    ),
}
"""The augmentations by name. To add one, write its function and add a line here; its strength is
then `--data.augment.extra '{"NAME": STRENGTH}'`."""
