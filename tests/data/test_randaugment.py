"""The operations of RandAugment, compared with Pillow's."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageEnhance, ImageOps

from distcnn.data import augment as aug
from distcnn.data import randaugment as ra
from tests.data.samples import batch, randomness


def one_operation(name: str, images: Any, magnitude: float, sign: float = 1.0) -> Any:
    operation = tf.fill([len(images)], ra.OPERATIONS.index(name))
    signs = tf.fill([len(images)], sign)
    return ra.apply_operations(tf.constant(images), operation, signs, magnitude).numpy()


def smooth_images(count: int, channels: int = 3) -> Any:
    """Uneven but smooth images that do not use the full range."""
    images, _ = batch(count, side=8, channels=channels)
    big = tf.image.resize(tf.constant(images), [24, 30], "bicubic") * 0.7 + 30
    return tf.cast(tf.clip_by_value(big, 0, 255), tf.uint8).numpy()


ENHANCERS = {
    "color": ImageEnhance.Color,
    "contrast": ImageEnhance.Contrast,
    "brightness": ImageEnhance.Brightness,
    "sharpness": ImageEnhance.Sharpness,
}


def pillow_references() -> Iterator[Any]:
    def enhance(kind: Any, factor: float) -> Callable[[Image.Image], Image.Image]:
        return lambda image: kind(image).enhance(factor)

    for name, kind in ENHANCERS.items():
        for sign in (-1, 1):
            reference = enhance(kind, 1 + sign * 0.9 * 0.5)
            yield pytest.param(name, sign, reference, id=f"{name}{sign:+d}")
    yield pytest.param("autocontrast", 1, ImageOps.autocontrast, id="autocontrast")
    yield pytest.param("equalize", 1, ImageOps.equalize, id="equalize")
    yield pytest.param("solarize", 1, lambda image: ImageOps.solarize(image, 128), id="solarize")
    yield pytest.param("posterize", 1, lambda image: ImageOps.posterize(image, 6), id="posterize")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(("name", "sign", "reference"), list(pillow_references()))
def test_operations_agree_with_pillow(
    name: str, sign: float, reference: Any, channels: int
) -> None:
    images = smooth_images(6, channels)
    out = one_operation(name, images, 0.5, float(sign)).astype(int)
    for image, ours in zip(images, out, strict=True):
        theirs = np.asarray(reference(Image.fromarray(image.squeeze()))).reshape(image.shape)
        # Pillow truncates where this rounds.
        exact = name in ("equalize", "solarize", "posterize")
        assert np.abs(ours - theirs).max() <= (0 if exact else 1)


def test_equalize_and_autocontrast_keep_a_flat_image() -> None:
    images = np.full((2, 8, 8, 3), 77, np.uint8)
    for name in ("equalize", "autocontrast"):
        np.testing.assert_array_equal(one_operation(name, images, 0.5), images)


def test_translation_moves_whole_pixels_and_fills_with_grey() -> None:
    images = smooth_images(2)
    right = one_operation("translate_x", images, 0.5, -1.0)
    np.testing.assert_array_equal(right[:, :, 7:], images[:, :, :-7])
    assert (right[:, :, :6] == 128).all()
    up = one_operation("translate_y", images, 0.5, 1.0)
    np.testing.assert_array_equal(up[:, :-5], images[:, 5:])
    assert (up[:, -4:] == 128).all()


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_rotation_and_shear_agree_with_pillow(sign: float) -> None:
    images = smooth_images(2)
    height, width = images.shape[1:3]
    # Pillow's coordinates have pixel centres at one half.
    y_mid, x_mid = height / 2, width / 2
    sheared = 0.3 * 0.5 * sign
    cases = {
        "shear_x": (1, sheared, -sheared * y_mid, 0, 1, 0),
        "shear_y": (1, 0, 0, sheared, 1, -sheared * x_mid),
    }
    for name in ("rotate", *cases):
        out = one_operation(name, images, 0.5, sign).astype(int)
        for image, ours in zip(images, out, strict=True):
            picture = Image.fromarray(image)
            if name == "rotate":
                # The sampled position turns clockwise (rows run down), so the image turns back.
                moved = picture.rotate(15 * sign, Image.Resampling.BILINEAR, fillcolor=(128,) * 3)
            else:
                moved = picture.transform(
                    picture.size,
                    Image.Transform.AFFINE,
                    cases[name],
                    Image.Resampling.BILINEAR,
                    fillcolor=(128,) * 3,
                )
            inner = np.s_[6:-6, 8:-8]
            assert np.abs(ours[inner] - np.asarray(moved).astype(int)[inner]).max() <= 2
        assert (out != images).mean() > 0.3


@pytest.mark.parametrize("name", [*ENHANCERS, "posterize", "solarize", *ra.OPERATIONS[9:]])
def test_operations_of_magnitude_0_are_the_identity(name: str) -> None:
    images = smooth_images(3)
    np.testing.assert_array_equal(one_operation(name, images, 0.0, -1.0), images)
    slight = one_operation(name, images, 0.01).astype(int)
    if name in ENHANCERS:
        assert np.abs(slight - images).max() <= 3


@pytest.mark.parametrize("name", ra.OPERATIONS[1:])
def test_every_operation_but_identity_changes_images(name: str) -> None:
    images = smooth_images(3)
    assert (one_operation(name, images, 0.6) != images).mean() > 0.2


def test_every_operation_is_drawn_and_goes_to_its_own_image() -> None:
    images = np.repeat(smooth_images(1), 560, axis=0)
    out = aug.randaugment(tf.constant(images), 1, 0.6, randomness(560)).numpy()
    counts = dict.fromkeys(ra.OPERATIONS, 0)
    for name in ra.OPERATIONS:
        both = [one_operation(name, images[:1], 0.6, sign) for sign in (-1.0, 1.0)]
        hits = [(out == value).all((1, 2, 3)).sum() for value in both]
        counts[name] = hits[0] if (both[0] == both[1]).all() else sum(hits)
        assert min(hits) > 0
    assert sum(counts.values()) == 560
    # 40 expected of each.
    assert min(counts.values()) >= 20
    assert max(counts.values()) <= 60
