"""Which part of an image becomes the model's input, and at which size.

Boxes are computed for whole batches in NumPy, before anything is decoded.
"""

import abc
from dataclasses import dataclass
from typing import Literal

import numpy as np
from typing_extensions import override

from distcnn.config import AugmentConfig, DataConfig

Shape = tuple[int, int, int]

_TRIES = 10
RANDOM_CROP_DRAWS = 2 * _TRIES + 2
"""Random numbers that `RandomCrop` takes for each image, without the one that mirrors it."""

MIRRORED_BELOW = 0.5
"""An image is mirrored if its random number is less."""


class Frame(abc.ABC):
    """Chooses the part of each image that is used.

    Attributes:
        reduced: Whether JPEG files may be decoded at a reduced size.
        antialias: Whether what is shrunk is filtered.
        mirrors: Whether images are mirrored whose last random number is less than
            `MIRRORED_BELOW`.
    """

    reduced: bool
    antialias: bool
    mirrors: bool = False

    @abc.abstractmethod
    def boxes(self, sizes: np.ndarray, image_shape: Shape, draws: np.ndarray) -> np.ndarray:
        """Returns the used part of each image.

        Args:
            sizes: Heights and widths, int64 `(n, 2)`, at least 1.
            image_shape: `(height, width, channels)` of the model's input.
            draws: Random numbers from [0, 1), float `(n, any)`.

        Returns:
            Top, left, height and width, int64 `(n, 4)`; within the image, at least one pixel.
        """

    @property
    def pads(self) -> bool:
        """Whether a box may be smaller in the model's input than that input is."""
        return False

    def contents(self, sizes: np.ndarray, image_shape: Shape) -> np.ndarray:
        """Returns the height and width, int64 `(n, 2)`, that each box has in the model's input.

        What is left over is padding.
        """
        return np.broadcast_to(np.array(image_shape[:2], np.int64), sizes.shape)


@dataclass(frozen=True)
class Framing(Frame):
    """The same part of every image, in its centre.

    Attributes:
        resize: As in `DataConfig`.
        crop_fraction: Fraction of each side that is used.
    """

    resize: Literal["stretch", "crop", "pad"] = "stretch"
    crop_fraction: float = 1.0
    reduced: bool = True
    antialias: bool = True

    @property
    @override
    def pads(self) -> bool:
        return self.resize == "pad"

    @property
    def is_whole(self) -> bool:
        """Whether whole images are stretched."""
        return self.resize == "stretch" and self.crop_fraction == 1

    @override
    def boxes(self, sizes: np.ndarray, image_shape: Shape, draws: np.ndarray) -> np.ndarray:
        sides = sizes
        if self.resize == "crop":
            sides = _largest_within(np.array(image_shape[:2], np.int64)[np.newaxis], sizes)
        sides = np.clip(np.rint(sides * self.crop_fraction).astype(np.int64), 1, sizes)
        return np.concatenate([(sizes - sides) // 2, sides], axis=1)

    @override
    def contents(self, sizes: np.ndarray, image_shape: Shape) -> np.ndarray:
        target = super().contents(sizes, image_shape)
        return _largest_within(sizes, target) if self.resize == "pad" else target


WHOLE = Framing()
"""Whole images, stretched."""


def _largest_within(ratio: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Returns the largest sizes of an aspect ratio within limits, `(n, 2)`, rounded, at least 1."""
    height, width = ratio[:, 0], ratio[:, 1]
    fits_height = limits[:, 0] * width <= limits[:, 1] * height
    by_height = np.stack([limits[:, 0], np.rint(limits[:, 0] * width / height)], axis=1)
    by_width = np.stack([np.rint(limits[:, 1] * height / width), limits[:, 1]], axis=1)
    return np.maximum(np.where(fits_height[:, np.newaxis], by_height, by_width), 1).astype(np.int64)


@dataclass(frozen=True)
class RandomCrop(Frame):
    """A random part of each image (Szegedy et al. 2015, arXiv:1409.4842).

    Its area is a uniform fraction of the image's, its aspect ratio log-uniform, its place uniform.
    What does not fit is drawn again, up to 10 times; then it is the largest part in the centre
    whose ratio is allowed.

    Attributes:
        scale: Least and greatest fraction of the area.
        ratio: Least and greatest width / height.
    """

    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    reduced: bool = True
    antialias: bool = False
    mirrors: bool = False

    @override
    def boxes(self, sizes: np.ndarray, image_shape: Shape, draws: np.ndarray) -> np.ndarray:
        draws = draws.astype(np.float64)
        area = (sizes[:, 0] * sizes[:, 1]).astype(np.float64)[:, np.newaxis]
        (least, most), (narrow, wide) = self.scale, np.log(self.ratio)
        wanted = area * (least + (most - least) * draws[:, :_TRIES])
        aspect = np.exp(narrow + (wide - narrow) * draws[:, _TRIES : 2 * _TRIES])
        tries = np.rint(np.sqrt(np.stack([wanted / aspect, wanted * aspect], axis=-1)))
        fits = ((tries > 0) & (tries <= sizes[:, np.newaxis])).all(axis=-1)
        first = tries[np.arange(len(sizes)), fits.argmax(axis=1)].astype(np.int64)
        found = fits.any(axis=1)[:, np.newaxis]
        sides = np.where(found, first, self._centre(sizes))
        room = sizes - sides
        place = draws[:, 2 * _TRIES : RANDOM_CROP_DRAWS]
        corner = np.minimum((place * (room + 1)).astype(np.int64), room)
        return np.concatenate([np.where(found, corner, room // 2), sides], axis=1)

    def _centre(self, sizes: np.ndarray) -> np.ndarray:
        """Returns the sides of the largest part whose ratio is allowed."""
        height, width = sizes[:, 0], sizes[:, 1]
        ratio = np.clip(width / height, *self.ratio)
        sides = [np.minimum(height, width / ratio), np.minimum(width, height * ratio)]
        return np.clip(np.rint(np.stack(sides, axis=1)).astype(np.int64), 1, sizes)


def evaluation_framing(config: DataConfig) -> Framing:
    """Returns how images are framed for validation, testing and prediction."""
    return Framing(config.resize, config.crop_fraction, config.reduced_decoding)


def training_framing(config: DataConfig) -> Framing:
    """Returns how images are framed for training without a random crop."""
    return Framing(config.resize, 1.0, config.reduced_decoding)


def random_crop(augment: AugmentConfig, *, reduced: bool) -> RandomCrop | None:
    """Returns the random crop of the training images, or None if it is disabled."""
    if not augment.random_resized_crop:
        return None
    (low, high), (narrow, wide) = augment.crop_scale, augment.crop_ratio
    return RandomCrop(
        (low, high), (narrow, wide), reduced, augment.crop_antialias, mirrors=augment.flip
    )
