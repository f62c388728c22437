"""Each stage of the augmentation against its definition."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.data import augment as aug
from tests.data.samples import batch, randomness


def partners(count: int) -> Any:
    return np.minimum(np.arange(count) ^ 1, count - 1)


def test_flip_mirrors_half_of_the_images() -> None:
    images, _ = batch(1000, side=4)
    out = aug.flip(tf.constant(images), randomness(1000)).numpy()
    mirrored = (out == images[:, :, ::-1]).all((1, 2, 3))
    kept = (out == images).all((1, 2, 3))
    assert (mirrored ^ kept).all()
    assert 450 < mirrored.sum() < 550


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_cuts_windows_of_the_padded_image_at_every_offset(channels: int) -> None:
    images, _ = batch(500, side=8, channels=channels)
    out = aug.pad_and_crop(tf.constant(images), 2, randomness(500)).numpy()
    padded = np.pad(images, [(0, 0), (2, 2), (2, 2), (0, 0)])
    windows = np.stack([padded[:, y : y + 8, x : x + 10] for y in range(5) for x in range(5)])
    hits = (windows == out).all((2, 3, 4))
    assert (hits.sum(0) == 1).all()
    # 25 offsets, 20 expected of each.
    assert hits.sum(1).min() >= 8
    assert hits.sum(1).max() <= 36


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
@pytest.mark.parametrize(("count", "padding"), [(1, 1), (40, 4), (40, 11)])
def test_crop_cuts_where_it_has_drawn(kind: type, count: int, padding: int) -> None:
    images = batch(count, side=8)[0].astype(kind)
    random = randomness(count)
    out = aug.pad_and_crop(tf.constant(images), padding, random).numpy()
    assert out.dtype == kind
    corners = (random.uniform(aug.Stream.CROP, 2).numpy() * (2 * padding + 1)).astype(int)
    beside = [(padding, padding), (padding, padding), (0, 0)]
    height, width = images.shape[1:3]
    for image, cropped, (y, x) in zip(images, out, corners, strict=True):
        expected = np.pad(image, beside)[y : y + height, x : x + width]
        np.testing.assert_array_equal(cropped, expected)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_flip_takes_few_images_and_floats(count: int) -> None:
    images = batch(count, side=6, channels=1)[0].astype(np.float32)
    for step in range(12):
        random = randomness(count, step)
        mirror = random.uniform(aug.Stream.FLIP, 1).numpy()[:, 0] < 0.5
        expected = np.where(mirror[:, None, None, None], images[:, :, ::-1], images)
        np.testing.assert_array_equal(aug.flip(tf.constant(images), random), expected)


def test_color_jitter_of_strength_0_is_the_identity() -> None:
    images, _ = batch(8)
    np.testing.assert_array_equal(aug.color_jitter(tf.constant(images), 0.0, randomness(8)), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_color_jitter_is_brightness_then_contrast_then_saturation(channels: int) -> None:
    # A narrow range of values, so that no step of the reference has to clip.
    images = batch(8, channels=channels)[0].astype(np.float32) / 16 + 110
    random = randomness(8)
    out = aug.color_jitter(tf.constant(images), 0.2, random).numpy()
    draws = random.uniform(aug.Stream.COLOR, 3).numpy() * 0.4 + 0.8
    brightness, contrast, saturation = draws.T[:, :, None, None, None]
    luma = np.array([0.299, 0.587, 0.114]) if channels == 3 else np.ones(1)

    def grey(x: Any) -> Any:
        return (x @ luma)[..., None]

    x = brightness * images
    mean = grey(x).mean((1, 2, 3), keepdims=True)
    x = contrast * x + (1 - contrast) * mean
    x = saturation * x + (1 - saturation) * grey(x)
    np.testing.assert_allclose(out, x, atol=0.2)
    assert np.ptp(draws, axis=0).min() > 0.1


def test_cutout_greys_one_clipped_square() -> None:
    images = np.zeros((600, 12, 14, 3), np.uint8)
    for side in (4, 5):
        out = aug.cutout(tf.constant(images), side, randomness(600)).numpy()
        assert set(np.unique(out)) == {0, 128}
        grey = out == 128
        assert (grey.all(-1) == grey.any(-1)).all()
        heights, widths = grey[..., 0].any(2).sum(1), grey[..., 0].any(1).sum(1)
        np.testing.assert_array_equal(grey[..., 0].sum((1, 2)), heights * widths)
        assert heights.max() == widths.max() == side
        assert heights.min() == widths.min() == side - side // 2
        # Some square covers every pixel, and the inner ones are covered equally often.
        fraction = grey[..., 0].mean(0)
        assert fraction.min() > 0
        np.testing.assert_allclose(fraction[4:8, 4:10], side**2 / (12 * 14), atol=0.06)


@pytest.mark.parametrize("count", [10, 11])
def test_mixup_blends_images_and_labels_with_the_same_weight(count: int) -> None:
    images, _ = batch(count)
    labels = np.eye(count, dtype=np.float32)
    random = randomness(count)
    out, mixed = aug.mixup(tf.constant(images), tf.constant(labels), 0.5, random)
    other = partners(count)
    weight = random.beta(aug.Stream.MIXUP, 0.5).numpy()[:, None]
    np.testing.assert_allclose(mixed, weight * labels + (1 - weight) * labels[other], atol=1e-6)
    flat = images.reshape(count, -1).astype(np.float64)
    expected = (weight * flat + (1 - weight) * flat[other]).reshape(images.shape)
    np.testing.assert_allclose(out, expected, atol=1e-3)


@pytest.mark.parametrize("count", [200, 201])
def test_cutmix_weighs_labels_by_pixels(count: int) -> None:
    images = np.broadcast_to(
        np.arange(count, dtype=np.uint8)[:, None, None, None], (count, 12, 14, 3)
    )
    labels = np.eye(count, dtype=np.float32)
    random = randomness(count)
    out, mixed = aug.cutmix(tf.constant(images), tf.constant(labels), 1.0, random)
    pasted = (out.numpy() != images)[..., 0]
    other = partners(count)
    values = np.where(pasted[..., None], images[other], images)
    np.testing.assert_array_equal(out, values)
    fraction = pasted.mean((1, 2))[:, None]
    expected = (1 - fraction) * labels + fraction * labels[other]
    np.testing.assert_allclose(mixed, expected, atol=1e-6)
    # Each region is a box, with the drawn area unless the border cuts it off.
    heights, widths = pasted.any(2).sum(1), pasted.any(1).sum(1)
    np.testing.assert_array_equal(pasted.sum((1, 2)), heights * widths)
    side = np.sqrt(1 - random.beta(aug.Stream.CUTMIX_AREA, 1.0).numpy())
    assert (heights <= 12 * side).all()
    assert (widths <= 14 * side).all()
    uncut = ~(pasted[:, [0, -1]].any((1, 2)) | pasted[:, :, [0, -1]].any((1, 2)))
    uncut &= pasted.any((1, 2))
    assert uncut.sum() > 10
    np.testing.assert_array_equal(heights[uncut], np.floor(12 * side[uncut]))
    np.testing.assert_array_equal(widths[uncut], np.floor(14 * side[uncut]))


def test_label_smoothing_spreads_its_fraction() -> None:
    labels = aug.smooth_labels(tf.eye(4), 0.1).numpy()
    np.testing.assert_allclose(labels, np.eye(4) * 0.9 + 0.025, rtol=1e-6)
