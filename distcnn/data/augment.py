"""Augmentation of training images: pure functions of whole batches, for use in a `tf.data` graph.

Every random number is a function of (seed, step, position in the global batch), so an image is
augmented in the same way however the batch is split over workers and wherever the run is resumed.
For bit-identical results, sums over pixels are integer sums, and no augmentation depends on the
size of the shard.

The layers of Keras 3 are not suitable: they draw one row per image of the batch that they receive,
so a shard's draws would depend on its size; RandAugment draws one operation for the whole batch and
ignores its seed; and the format of explicit transformations is private.
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
from distcnn.data.framing import MIRRORED_BELOW
from distcnn.data.mirroring import mirror

GREY = 128
"""Pixel value that cutout fills its square with."""


class Stream(enum.IntEnum):
    """Random number stream of each augmentation."""

    FLIP = 0
    CROP = 1
    COLOR = 2
    RANDAUGMENT = 3
    CUTOUT = 4
    MIXUP = 5
    CUTMIX_AREA = 6
    CUTMIX_CENTRE = 7
    MIXUP_OR_CUTMIX = 8
    RANDOM_RESIZED_CROP = 9


@dataclass(frozen=True)
class Randomness:
    """Random numbers for one shard of a global batch.

    The numbers are drawn for the whole global batch and sliced to the shard, so that shards agree
    without communication. A stream is a member of `Stream`, or the name of a custom augmentation.

    Attributes:
        seed: Integer tensor of shape `(2,)` that identifies the batch: run seed and global step.
        offset: Integer scalar, position of the shard's first image in the global batch.
        count: Integer scalar, number of images in this shard.
        total: Integer scalar, number of images in the global batch.
        mirrored: Which images the flip mirrors, bool tensor of shape `(count,)`; None if it decides
            by chance.
    """

    seed: Any
    offset: Any
    count: Any
    total: Any
    mirrored: Any = None

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
        # For a tiny alpha, both may underflow to 0. The limit is 0 or 1, with equal probability.
        return tf.math.divide_no_nan(first, first + second)

    def scalar(self, stream: int | str) -> tf.Tensor:
        """Draws one float32 scalar from [0, 1), the same in every shard."""
        return tf.random.stateless_uniform([], seed=self._fold(stream))

    def partner(self) -> tf.Tensor:
        """Returns each image's partner for mixing: int32 indices into the shard, shape `(count,)`.

        The partner of global position p is p XOR 1. If that is outside the shard (the last image of
        an odd batch, or a pair divided between two shards), the image is its own partner.
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
    """Applies the enabled augmentations.

    The random resized crop is none of them, as it is applied when images are read, together with
    the flip if both are enabled. The order is flip, crop, colour, RandAugment, cutout, then mixup
    or CutMix (if both are enabled, one of them for the whole global batch, with equal probability),
    label smoothing, and finally those of `config.extra`.

    Args:
        images: uint8 or float32 tensor of shape `(count, height, width, 1 or 3)`, from 0 to 255.
        labels: float32 tensor of shape `(count, classes)`, rows that sum to 1.
        config: The augmentations and their strengths.
        random: Random numbers of this shard.

    Returns:
        Images of the same shape and dtype (float32 with mixup), and labels of the same shape.

    Raises:
        UsageError: If `config.extra` names an unknown augmentation.
    """
    for apply, strength in _enabled(config):
        shape = images.shape
        images, labels = apply(images, labels, strength, random)
        images = tf.ensure_shape(images, shape)
    return images, labels


@tf.autograph.experimental.do_not_convert
def _enabled(config: AugmentConfig) -> "list[tuple[Augmentation, Any]]":
    """Returns the functions of the enabled augmentations and their strengths, in order."""
    key = "data.augment.extra"
    return [
        (import_object(name, key) if ":" in name else look_up(key, name, AUGMENTATIONS), strength)
        for name, strength in _strengths(config).items()
        if strength
    ]


def _strengths(config: AugmentConfig) -> dict[str, Any]:
    """Returns the strengths of all augmentations by name, in the order they are applied."""
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
    """Flips each image horizontally with probability 0.5, or those that are to be mirrored."""
    return mirror(images, flip_draws(random)[:, 0] < MIRRORED_BELOW)


def flip_draws(random: Randomness) -> tf.Tensor:
    """Returns the random numbers that decide which images are mirrored, float32 `(count, 1)`."""
    if random.mirrored is None:
        return random.uniform(Stream.FLIP, 1)
    return tf.where(random.mirrored, 0.0, 1.0)[:, tf.newaxis]


def pad_and_crop(images: tf.Tensor, padding: int, random: Randomness) -> tf.Tensor:
    """Pads every side with `padding` zero pixels, then crops at random to the original size.

    The offset of each image's window is uniform over the `(2 padding + 1)^2` possible ones.
    """
    count, (height, width, channels) = tf.shape(images)[0], images.shape[1:]
    draws = random.uniform(Stream.CROP, 2)
    corner = tf.cast(draws * (2 * padding + 1), tf.int32)
    beside = padding * channels
    row = width * channels + 2 * beside
    above, below = padding * row, padding * row + 2 * beside
    # Padding twice with rank 2 takes a quarter of the time of padding once with rank 4.
    rows = tf.pad(tf.reshape(images, [-1, width * channels]), [[0, 0], [beside, beside]])
    padded = tf.pad(tf.reshape(rows, [-1, height * row]), [[0, 0], [above, below]])
    # Each window is copied as one substring of the serialised tensor, whose last bytes are its
    # elements in order. This is 4 times as fast as gathering pixels.
    data, size = tf.io.serialize_tensor(padded), images.dtype.size
    first = tf.strings.length(data) + tf.range(-count, 0) * (above + height * row + below) * size
    start = first + corner[:, 0] * (row * size) + corner[:, 1] * (channels * size)
    pieces = tf.strings.substr(data, start, tf.fill([count], height * row * size))
    windows = tf.reshape(tf.io.decode_raw(pieces, images.dtype), [-1, row])
    # The substrings also contain the pixels beside the window.
    return tf.reshape(windows[:, : width * channels], [-1, height, width, channels])


def color_jitter(images: tf.Tensor, strength: float, random: Randomness) -> tf.Tensor:
    """Scales brightness, contrast and saturation of each image at random.

    The factors are uniform in `[max(0, 1 - strength), 1 + strength]`. Contrast scales the distance
    from the image's mean grey, saturation that from the pixel's own grey. All three are linear, so
    they are applied together, with one clipping to [0, 255] at the end.
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
        operations: Number of rounds, each of which applies a random one of
            `randaugment.OPERATIONS` to every image.
        magnitude: Strength from 0 to 1, the paper's M / 10; the sign is random.
        random: Random numbers of this shard.

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

    Its centre is a uniformly random pixel; the part outside the image is cut off.
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

    Each image draws its own weight `lambda ~ Beta(alpha, alpha)`, so that the two partners differ.
    See `Randomness.partner` for the pairs.

    Returns:
        float32 images and labels.
    """
    partner = random.partner()
    weight = random.beta(Stream.MIXUP, alpha)
    pixels = tf.cast(images, tf.float32)
    other = tf.cast(tf.gather(images, partner), tf.float32)
    mixed = other + weight[:, None, None, None] * (pixels - other)
    return mixed, _mix_labels(labels, partner, weight)


def cutmix(
    images: tf.Tensor, labels: tf.Tensor, alpha: float, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Pastes a box from its partner into each image (Yun et al. 2019, arXiv:1905.04899).

    Each image draws its own box, centred on a uniformly random pixel. The box has the image's
    aspect ratio and the fraction `1 - lambda` of its area, `lambda ~ Beta(alpha, alpha)`; its sides
    are rounded down to whole pixels. Labels are weighted by the pixels actually replaced, after
    the box is clipped at the border. See `Randomness.partner` for the pairs.

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
    """Spreads the fraction `smoothing` over all classes (Szegedy et al. 2016, section 7)."""
    return labels * (1 - smoothing) + smoothing / labels.shape[-1]


def mixup_or_cutmix(
    images: tf.Tensor, labels: tf.Tensor, alphas: tuple[float, float], random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """Applies mixup or CutMix to the whole global batch, each with probability 0.5."""

    def apply_cutmix() -> tuple[tf.Tensor, tf.Tensor]:
        mixed, weighted = cutmix(images, labels, alphas[1], random)
        return tf.cast(mixed, tf.float32), weighted

    mixed, weighted = tf.cond(
        random.scalar(Stream.MIXUP_OR_CUTMIX) < 0.5,
        lambda: mixup(images, labels, alphas[0], random),
        apply_cutmix,
    )
    return tf.ensure_shape(mixed, images.shape), tf.ensure_shape(weighted, labels.shape)


def _mix_labels(labels: tf.Tensor, partner: tf.Tensor, weight: tf.Tensor) -> tf.Tensor:
    fraction = weight[:, None]
    return fraction * labels + (1 - fraction) * tf.gather(labels, partner)


def _paste(images: tf.Tensor, patch: tf.Tensor, begin: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Replaces the pixels from `begin` to `end` (row and column, `(count, 2)`) by those of `patch`.

    Columns and channels are merged into one axis: a mask without broadcasting is twice as fast.
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
"""Maps images, labels, strength and random numbers to images and labels of the same shapes."""

_BUILT_IN: dict[str, Augmentation] = {
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

AUGMENTATIONS: dict[str, Augmentation] = {
    name: tf.autograph.experimental.do_not_convert(apply) for name, apply in _BUILT_IN.items()
}
"""The augmentations by name. To add one, write its function and register it here; then enable it
with `--data.augment.extra '{"NAME": STRENGTH}'`."""
