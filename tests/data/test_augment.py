"""The augmentation is a pure function of (seed, step, position in the global batch)."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import AugmentConfig
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
