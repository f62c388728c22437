"""The section `data.augment`, and its short form on the command line."""

import math
from dataclasses import dataclass, field
from typing import Any

from distcnn.config.sections.bounds import (
    require,
    require_at_least,
    require_at_most,
    require_finite,
    require_fraction,
)


@dataclass(frozen=True, kw_only=True)
class AugmentConfig:
    """Augmentation of the training images; 0 or false disables an augmentation.

    On the command line, `--data.augment flip,crop` enables these two at their usual strengths and
    disables all others; `--data.augment none` disables all.
    """

    flip: bool = False
    """Flip each image horizontally with probability 0.5."""
    alternate_flip: bool = False
    """With flip: decide by chance in the first epoch only, then mirror each image in every other
    epoch (Jordan 2024)."""
    crop: int = 0
    """Pad each side with this many zero pixels, then crop at random to the original size."""
    random_resized_crop: bool = False
    """Cut out a random part of each stored image and resize it to the model's input (Szegedy et al.
    2015); JPEG files are cut before they are decoded."""
    crop_scale: list[float] = field(default_factory=lambda: [0.08, 1.0])
    """Least and greatest fraction of the image's area that random_resized_crop cuts out."""
    crop_ratio: list[float] = field(default_factory=lambda: [3 / 4, 4 / 3])
    """Least and greatest ratio of width to height of what random_resized_crop cuts out."""
    crop_antialias: bool = False
    """Whether random_resized_crop filters what it shrinks, at about twice the time."""
    color: float = 0.0
    """Scale brightness, contrast and saturation by random factors from [1 - color, 1 + color]."""
    randaugment: int = 0
    """RandAugment (Cubuk et al. 2019): number of random operations per image."""
    randaugment_magnitude: float = 0.5
    """Strength of the RandAugment operations, from 0 to 1."""
    cutout: int = 0
    """Cutout (DeVries and Taylor 2017): grey out one square with sides of this many pixels."""
    mixup: float = 0.0
    """mixup (Zhang et al. 2018): blend pairs of images with weights from Beta(mixup, mixup)."""
    cutmix: float = 0.0
    """CutMix (Yun et al. 2019): replace a box in each image by that of another one; the fraction of
    the area that is kept is drawn from Beta(cutmix, cutmix)."""
    label_smoothing: float = 0.0
    """Fraction of the target spread evenly over all classes (Szegedy et al. 2016)."""
    extra: dict[str, float] = field(default_factory=dict)
    """Further augmentations, applied last, as a mapping from names to strengths. Name your own as
    package.module:function; it is called with (images, labels, strength, random)."""

    def __post_init__(self) -> None:
        """Validates the strengths."""
        require_finite("data.augment", self)
        require(
            self.flip or not self.alternate_flip,
            "data.augment.alternate_flip is true without flip; add --data.augment.flip true",
        )
        require_at_most("data.augment", self, 100, "randaugment")
        require_at_most("data.augment", self, 4096, "crop", "cutout")
        names = ("crop", "color", "randaugment", "cutout", "mixup", "cutmix")
        require_at_least("data.augment", self, 0, *names)
        require_fraction("data.augment", self, "label_smoothing")
        _require_range("crop_scale", self.crop_scale, most=1)
        _require_range("crop_ratio", self.crop_ratio)
        magnitude = self.randaugment_magnitude
        require(
            0 <= magnitude <= 1,
            f"data.augment.randaugment_magnitude is {magnitude}; expected 0 <= value <= 1",
        )


def _require_range(name: str, value: list[float], most: float = math.inf) -> None:
    expected = "two numbers, 0 < least <= greatest" + (f" <= {most:g}" if most < math.inf else "")
    require(
        len(value) == 2 and 0 < value[0] <= value[1] <= most,
        f"data.augment.{name} is {value}; expected {expected}",
    )


AUGMENT_PRESETS: dict[str, dict[str, Any]] = {
    "flip": {"flip": True},
    "crop": {"crop": 4},
    "random_resized_crop": {"random_resized_crop": True},
    "color": {"color": 0.2},
    "randaugment": {"randaugment": 2},
    "cutout": {"cutout": 8},
    "mixup": {"mixup": 0.2},
    "cutmix": {"cutmix": 1.0},
    "label_smoothing": {"label_smoothing": 0.1},
}
"""Usual strength of each augmentation, for the short form `--data.augment NAME,NAME`."""
