"""Stages of the augmentation: pure functions of (seed, step, position in the global batch)."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import AugmentConfig
from distcnn.data import augment as aug
from distcnn.data.augment import Randomness, augment
from tests.data.samples import CLASSES, batch, randomness

EVERYTHING = {
    "flip": True,
    "crop": 2,
    "color": 0.4,
    "randaugment": 2,
    "cutout": 4,
    "cutmix": 1.0,
    "label_smoothing": 0.1,
}
STAGES: dict[str, dict[str, Any]] = {name: {name: value} for name, value in EVERYTHING.items()} | {
    "mixup": {"mixup": 0.4},
    "mixup or cutmix": {"mixup": 0.4, "cutmix": 1.0},
    "all": EVERYTHING,
    "all and mixup": EVERYTHING | {"mixup": 0.4},
}
RANDOM_STAGES = [name for name in STAGES if name != "label_smoothing"]


def run(stage: str, images: Any, labels: Any, random: Randomness) -> tuple[Any, Any]:
    out = augment(tf.constant(images), tf.constant(labels), AugmentConfig(**STAGES[stage]), random)
    return out[0].numpy(), out[1].numpy()


def partners(count: int) -> Any:
    return np.minimum(np.arange(count) ^ 1, count - 1)


@pytest.mark.parametrize("stage", STAGES)
def test_same_seed_and_step_give_the_same_images(stage: str) -> None:
    images, labels = batch(12)
    first, second = (run(stage, images, labels, randomness(12)) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])


@pytest.mark.parametrize("stage", RANDOM_STAGES)
def test_other_steps_and_seeds_give_other_images(stage: str) -> None:
    images, labels = batch(12)
    one, _ = run(stage, images, labels, randomness(12))
    step, _ = run(stage, images, labels, randomness(12, step=1))
    seed, _ = run(stage, images, labels, Randomness(tf.constant([22, 0], tf.int64), 0, 12, 12))
    assert (one != step).any()
    assert (one != seed).any()


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("shards", [[4, 8], [2] * 6])
@pytest.mark.parametrize("stage", STAGES)
def test_shards_equal_the_global_batch(stage: str, shards: list[int], dtype: Any) -> None:
    images, labels = batch(12)
    images = images.astype(dtype)
    for step in range(5):
        whole = run(stage, images, labels, randomness(12, step))
        parts, offset = [], 0
        for count in shards:
            cut = slice(offset, offset + count)
            random = randomness(count, step, offset, 12)
            parts.append(run(stage, images[cut], labels[cut], random))
            offset += count
        for expected, shard in zip(whole, zip(*parts, strict=True), strict=True):
            np.testing.assert_array_equal(np.concatenate(shard), expected)


@pytest.mark.parametrize("stage", [s for s in STAGES if "mix" not in s and s != "all"])
def test_unpaired_stages_take_any_split(stage: str) -> None:
    images, labels = batch(7)
    whole, _ = run(stage, images, labels, randomness(7))
    ones = [
        run(stage, images[i : i + 1], labels[i : i + 1], randomness(1, 0, i, 7))[0]
        for i in range(7)
    ]
    np.testing.assert_array_equal(np.concatenate(ones), whole)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_shape_dtype_and_range_are_kept(stage: str, channels: int, dtype: Any) -> None:
    images, labels = batch(9, channels=channels)
    for step in range(3):
        out, mixed = run(stage, images.astype(dtype), labels, randomness(9, step))
        assert out.shape == images.shape
        assert out.dtype == (np.float32 if "mixup" in STAGES[stage] else dtype)
        assert out.min() >= 0
        assert out.max() <= 255
        assert mixed.dtype == np.float32
        assert mixed.min() >= 0
        np.testing.assert_allclose(mixed.sum(1), 1, atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stage", STAGES)
def test_runs_in_a_pipeline_of_unknown_batch_size(stage: str, channels: int) -> None:
    images, labels = batch(10, channels=channels)
    config = AugmentConfig(**STAGES[stage])

    def vary(step: tf.Tensor, values: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.shape(values[0], tf.int64)[0]
        seed = tf.stack([tf.constant(21, tf.int64), step])
        total = tf.constant(4, tf.int64)
        return augment(*values, config, Randomness(seed, tf.constant(0, tf.int64), count, total))

    data = tf.data.Dataset.from_tensor_slices((images, labels)).batch(4).enumerate().map(vary)
    assert data.element_spec[0].shape.as_list() == [None, 12, 14, channels]
    assert data.element_spec[1].shape.as_list() == [None, CLASSES]
    for step, (out, mixed) in enumerate(data):
        cut = slice(4 * step, 4 * step + 4)
        count = len(images[cut])
        expected = run(stage, images[cut], labels[cut], randomness(count, step, 0, 4))
        np.testing.assert_array_equal(out, expected[0])
        np.testing.assert_array_equal(mixed, expected[1])


def test_everything_off_returns_the_inputs() -> None:
    images, labels = (tf.constant(value) for value in batch(4))
    same = augment(images, labels, AugmentConfig(), randomness(4))
    assert same[0] is images
    assert same[1] is labels


def test_streams_are_independent_and_uniform() -> None:
    draws = [randomness(4000).uniform(stream, 2).numpy() for stream in aug.Stream]
    correlation = np.corrcoef(np.concatenate(draws, axis=1).T)
    assert np.abs(correlation - np.eye(2 * len(draws))).max() < 0.07
    for draw in draws:
        assert draw.min() >= 0
        assert draw.max() < 1
        np.testing.assert_allclose(draw.mean(0), 0.5, atol=0.02)


def test_beta_has_the_moments_of_its_distribution() -> None:
    for alpha in (0.2, 1.0, 4.0):
        values = randomness(8000).beta(aug.Stream.MIXUP, alpha).numpy()
        assert values.mean() == pytest.approx(0.5, abs=0.02)
        assert values.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.05)
    assert np.isfinite(randomness(1000).beta(aug.Stream.MIXUP, 1e-3).numpy()).all()


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


def test_images_whose_partner_is_in_another_shard_pair_with_themselves() -> None:
    np.testing.assert_array_equal(randomness(5, offset=3, total=12).partner(), [0, 2, 1, 4, 3])
    np.testing.assert_array_equal(randomness(4, offset=3, total=12).partner(), [0, 2, 1, 3])
    np.testing.assert_array_equal(randomness(5).partner(), [1, 0, 3, 2, 4])


def test_mixup_and_cutmix_take_turns() -> None:
    images, labels = batch(4)
    random = [randomness(4, step) for step in range(40)]
    boxed = 0
    for each in random:
        out, _ = run("mixup or cutmix", images, labels, each)
        expected = [run(stage, images, labels, each)[0] for stage in ("mixup", "cutmix")]
        matches = [(out == value).all() for value in expected]
        assert sum(matches) == 1
        boxed += matches[1]
    assert 10 < boxed < 30


def test_label_smoothing_spreads_its_fraction() -> None:
    labels = aug.smooth_labels(tf.eye(4), 0.1).numpy()
    np.testing.assert_allclose(labels, np.eye(4) * 0.9 + 0.025, rtol=1e-6)
