import itertools

import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import AugmentConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.pipeline import (
    BatchSharding,
    EpochSampler,
    evaluation_dataset,
    sharded_evaluation_dataset,
    training_dataset,
)
from distcnn.errors import DataError

CLASSES = 5


@pytest.fixture(scope="module")
def split() -> ArraySplit:
    """23 images whose first pixel is their index."""
    images = np.random.default_rng(0).integers(0, 256, (23, 8, 8, 3), dtype=np.uint8)
    images[:, 0, 0, 0] = np.arange(23)
    return ArraySplit(images, np.arange(23) % CLASSES)


def sharding(split, first_step, last_step, augment=None, batch_size=5, seed=3, part=None):
    sampler = EpochSampler(len(split), batch_size, seed)
    dataset = training_dataset(
        split,
        CLASSES,
        sampler,
        augment or AugmentConfig(),
        part or BatchSharding(),
        first_step=first_step,
        last_step=last_step,
    )
    return list(dataset.as_numpy_iterator())


def batches(*arguments, **keywords):
    found = sharding(*arguments, **keywords)
    for images, _, weights in found:
        np.testing.assert_allclose(weights, 1 / len(images))
    return [(images, labels) for images, labels, _ in found]


def test_each_epoch_sees_every_image_once_in_an_order_of_its_own(split):
    found = batches(split, 0, 15)
    epochs = [[int(i) for x, _ in found[e : e + 5] for i in x[:, 0, 0, 0]] for e in (0, 5, 10)]
    assert [len(x) for x, _ in found] == [5, 5, 5, 5, 3] * 3
    assert all(sorted(epoch) == list(range(23)) for epoch in epochs)
    assert all(a != b for a, b in itertools.combinations(epochs, 2))
    assert EpochSampler(23, 5, 3).permutation(1).tolist() == epochs[1]
    assert EpochSampler(23, 5, 4).permutation(1).tolist() != epochs[1]


def test_images_keep_their_labels_and_their_type(split):
    for images, labels in batches(split, 0, 5):
        assert images.dtype == np.uint8
        assert labels.dtype == np.float32
        assert labels.argmax(axis=1).tolist() == (images[:, 0, 0, 0] % CLASSES).tolist()
        assert labels.sum() == len(labels)


def test_alternating_flips_show_each_image_both_ways_in_turn(split):
    """Whatever the shard and the first step are; by chance only in the first epoch."""
    alternating = AugmentConfig(flip=True, alternate_flip=True)
    whole = batches(split, 0, 20, alternating)
    seen = []
    for epoch in range(4):
        images = np.concatenate([x for x, _ in whole[5 * epoch : 5 * epoch + 5]])
        order = EpochSampler(23, 5, 3).permutation(epoch)
        stored = split.gather(order).numpy()
        mirrored = (images == stored[:, :, ::-1]).all((1, 2, 3))
        assert ((images == stored).all((1, 2, 3)) ^ mirrored).all()
        seen.append(mirrored[np.argsort(order)])
    assert 4 < seen[0].sum() < 19
    for epoch in range(1, 4):
        np.testing.assert_array_equal(seen[epoch], ~seen[epoch - 1])
    for part in (sharding(split, 7, 8, alternating, part=BatchSharding(range(1, 2), 2)),):
        images = part[0][0]
        np.testing.assert_array_equal(images, whole[7][0][-len(images) :])


@pytest.mark.parametrize("first_step", [1, 4, 5, 7, 14])
def test_any_step_can_be_the_first(split, first_step):
    everything = AugmentConfig(
        flip=True, crop=2, color=0.3, randaugment=1, cutout=3, mixup=0.3, cutmix=1.0
    )
    whole = batches(split, 0, 15, everything)
    part = batches(split, first_step, 15, everything)
    assert len(part) == 15 - first_step
    for (images, labels), (images_again, labels_again) in zip(
        whole[first_step:], part, strict=True
    ):
        np.testing.assert_array_equal(images, images_again)
        np.testing.assert_array_equal(labels, labels_again)


def test_augmentation_differs_by_epoch_and_seed(split):
    flip = AugmentConfig(flip=True, crop=3)
    first, second = batches(split, 0, 5, flip), batches(split, 0, 5, flip, seed=4)
    assert any(not np.array_equal(a, b) for (a, _), (b, _) in zip(first, second, strict=True))


def test_evaluation_sees_every_image_once_in_stored_order(split):
    found = list(evaluation_dataset(split, CLASSES, 10).as_numpy_iterator())
    assert [len(images) for images, _ in found] == [10, 10, 3]
    images = np.concatenate([images for images, _ in found])
    assert images[:, 0, 0, 0].tolist() == list(range(23))


def test_images_before_a_step():
    sampler = EpochSampler(23, 5, 0)
    assert [sampler.images_before(step) for step in (0, 1, 4, 5, 6, 10)] == [0, 5, 20, 23, 28, 46]


EVERYTHING = AugmentConfig(
    flip=True, crop=2, color=0.3, randaugment=1, cutout=3, mixup=0.3, cutmix=1.0
)


@pytest.mark.parametrize(
    ("batch_size", "devices", "processes", "accumulation"),
    [(2, 1, 3, 1), (2, 2, 1, 2), (5, 1, 2, 1), (5, 2, 2, 2), (12, 3, 1, 1), (12, 1, 4, 1)],
)
def test_shards_make_up_the_batches_of_one_worker(
    split, batch_size, devices, processes, accumulation
):
    """For any number of workers: the same images in the same order, augmented the same way."""
    whole = batches(split, 2, 9, EVERYTHING, batch_size)
    replicas = processes * devices
    parts = []
    for process in range(processes):
        own = range(process * devices, (process + 1) * devices)
        part = BatchSharding(own, replicas, accumulation)
        found = sharding(split, 2, 9, EVERYTHING, batch_size, part=part)
        assert len(found) == len(whole) * devices * accumulation
        parts.append(found)
    for step, (images, labels) in enumerate(whole):
        in_order = []
        for turn in range(accumulation):
            for replica in range(replicas):
                process, device = divmod(replica, devices)
                element = (step * accumulation + turn) * devices + device
                in_order.append(parts[process][element])
        assert all(len(x) > 0 for x, _, _ in in_order)
        real = [shard for shard in in_order if shard[2][0] > 0]
        np.testing.assert_array_equal(np.concatenate([x for x, _, _ in real]), images)
        np.testing.assert_array_equal(np.concatenate([y for _, y, _ in real]), labels)
        weights = np.concatenate([w for _, _, w in in_order])
        np.testing.assert_allclose(weights[weights > 0], 1 / len(images))
        assert weights.sum() == pytest.approx(1)


def test_shards_are_even(split):
    sizes = [
        len(sharding(split, 0, 1, batch_size=23, part=BatchSharding(range(r, r + 1), 4))[0][0])
        for r in range(4)
    ]
    assert sorted(sizes) == [5, 6, 6, 6]


@pytest.mark.parametrize("replicas", [1, 2, 5, 40])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_evaluation_sees_every_image_once_over_all_workers(split, replicas, batch_size):
    seen: list[int] = []
    steps = set()
    for replica in range(replicas):
        part = BatchSharding(range(replica, replica + 1), replicas)
        dataset, count = sharded_evaluation_dataset(split, CLASSES, batch_size, part)
        found = list(dataset.as_numpy_iterator())
        assert len(found) == count
        steps.add(count)
        for images, labels, weights in found:
            assert len(images) == len(labels) == len(weights) > 0
            seen += [int(i) for i in images[weights > 0][:, 0, 0, 0]]
    assert len(steps) == 1
    assert seen == list(range(23))


def test_what_cannot_be_cropped_at_once_is_refused_by_name():
    images = np.broadcast_to(np.uint8(0), (4096, 512, 512, 3))
    sampler = EpochSampler(4096, 4096, 3)

    def dataset(crop, part):
        return training_dataset(
            ArraySplit(images, np.zeros(4096, int)),
            CLASSES,
            sampler,
            AugmentConfig(crop=crop),
            part,
            first_step=0,
            last_step=1,
        )

    with pytest.raises(DataError, match="4096 images of 512 x 512 pixels are too large"):
        dataset(8, BatchSharding())
    dataset(8, BatchSharding(range(1), replicas=2))
    dataset(0, BatchSharding())


class Branching(ArraySplit):
    """A split of a user's own, with a Python branch on a tensor."""

    def gather(self, indices):
        images = super().gather(indices)
        if tf.reduce_min(images) == 0:
            images = images + 1
        return images


def test_code_of_a_users_own_may_branch_on_tensors():
    images = np.full((4, 2, 2, 1), 100, np.uint8)
    images[0], images[1] = 0, 250
    augment = AugmentConfig(extra={"tests.extension:darken_if_bright": 0.5})
    found = sharding(Branching(images, np.arange(4)), 0, 4, augment, batch_size=1)
    assert sorted(x.max() for x, _, _ in found) == [1, 100, 100, 125]
