"""The input pipeline: turns a split into shuffled, augmented and prefetched batches.

The order is a pure function of (seed, epoch, position), so a run can start at any step and any
worker can compute its shards of any batch. Images stay uint8 until the model scales them, unless
augmentation mixes them.

`tf.data` converts what it maps with AutoGraph, for a split or an augmentation of a user's own that
branches on tensors. The functions here have nothing to convert, and are exempt: reading and
rewriting their source would take longer than tracing them.
"""

import math
from dataclasses import dataclass, field, replace

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config import AugmentConfig
from distcnn.data.augment import Randomness, Stream, augment, flip_draws
from distcnn.data.framing import RANDOM_CROP_DRAWS, random_crop
from distcnn.data.split import Split
from distcnn.errors import DataError

_PREFETCHED_BYTES = 64 * 2**20

_MIRRORED = 2**64 - 1
"""In place of an epoch, for the random numbers of alternating flips."""

_MAX_CROP_BYTES = 2**31 - 2**16
"""The most that cropping takes, as it serialises the images with TensorFlow."""


@dataclass(frozen=True)
class EpochSampler:
    """The order in which the training images are seen.

    Attributes:
        examples: Number of training images.
        global_batch_size: Images per step over all workers; the last step of an epoch has the
            remainder.
        seed: Seed of the shuffle.
    """

    examples: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in one pass over all images."""
        return math.ceil(self.examples / self.global_batch_size)

    def images_before(self, step: int) -> int:
        """Returns the number of images seen before a global step, over all epochs."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return epoch * self.examples + min(in_epoch * self.global_batch_size, self.examples)

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the image order of an epoch, int64 indices of shape `(examples,)`."""
        random = np.random.Generator(np.random.Philox([self.seed, epoch]))
        return random.permutation(self.examples)

    def mirrored_at_first(self) -> np.ndarray:
        """Returns which images alternating flips mirror in even epochs, bool of `(examples,)`."""
        random = np.random.Generator(np.random.Philox([self.seed, _MIRRORED]))
        return random.integers(0, 2, self.examples, np.uint8).astype(bool)


@dataclass(frozen=True)
class BalancedSampler(EpochSampler):
    """The order of the images where every class is seen as often as the largest one.

    Each image of a class is seen equally often, or once more; chance decides which, anew in every
    epoch.

    Attributes:
        labels: int64 `(images,)`, the class of each training image.
    """

    labels: np.ndarray = field(compare=False)

    @classmethod
    def of(cls, labels: np.ndarray, global_batch_size: int, seed: int) -> "BalancedSampler":
        """Returns the sampler of images with these classes."""
        counts = np.unique(labels, return_counts=True)[1]
        return cls(len(counts) * int(counts.max()), global_batch_size, seed, labels)

    @override
    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the image order of an epoch, int64 indices of shape `(examples,)`."""
        random = np.random.Generator(np.random.Philox([self.seed, epoch]))
        classes = np.unique(self.labels)
        most = self.examples // len(classes)
        seen = []
        for label in classes:
            images = np.flatnonzero(self.labels == label)
            times, more = divmod(most, len(images))
            seen += [np.tile(images, times), random.permutation(images)[:more]]
        return np.concatenate(seen)[random.permutation(self.examples)]


@dataclass(frozen=True)
class BatchSharding:
    """The shards of every batch that this process computes.

    A batch is divided into `replicas * accumulation_steps` shards of whole images, as evenly as
    possible; shard `a * replicas + r` is the a-th that replica r computes, or if its shards adjoin,
    `r * accumulation_steps + a`. The content of a shard depends only on its number and the batch,
    so any number of workers sees the same batch.

    Attributes:
        local_replica_ids: Numbers of the replicas in this process.
        replicas: Replicas in the whole run.
        accumulation_steps: Shards that each replica computes one after the other.
        adjoining: Whether these adjoin, as those of virtual workers do.
    """

    local_replica_ids: range = range(1)
    replicas: int = 1
    accumulation_steps: int = 1
    adjoining: bool = False

    @property
    def count(self) -> int:
        """Number of shards in a batch."""
        return self.replicas * self.accumulation_steps

    @tf.autograph.experimental.do_not_convert
    def shard_at(self, index: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the step and the shard of this process's index-th element, counted from 0."""
        per_step = len(self.local_replica_ids) * self.accumulation_steps
        within = index % per_step
        replica = self.local_replica_ids.start + within % len(self.local_replica_ids)
        turn = within // len(self.local_replica_ids)
        if self.adjoining:
            return index // per_step, replica * self.accumulation_steps + turn
        return index // per_step, turn * self.replicas + replica

    @tf.autograph.experimental.do_not_convert
    def bounds(self, images: tf.Tensor, shard: tf.Tensor, group_size: int) -> tuple[tf.Tensor, ...]:
        """Returns the range of images in a shard.

        Args:
            images: Number of images in the batch, int64 scalar, at least 1.
            shard: Number of the shard.
            group_size: Images that must stay together: 2 if pairs are mixed, else 1.

        Returns:
            First position, end position, and a weight of 1.0. An empty shard gets the first image
            of the batch as a placeholder of weight 0.0, so that every replica has work to do.
        """
        groups = (images + group_size - 1) // group_size
        first = tf.minimum(groups * shard // self.count * group_size, images)
        end = tf.minimum(groups * (shard + 1) // self.count * group_size, images)
        empty = first >= end
        zero, one = tf.zeros_like(first), tf.ones_like(first)
        weight = tf.where(empty, 0.0, 1.0)
        return tf.where(empty, zero, first), tf.where(empty, one, end), weight


def image_group(augmentation: AugmentConfig) -> int:
    """Returns how many images of a batch stay together: 2 if pairs are mixed, else 1."""
    return 2 if augmentation.mixup or augmentation.cutmix else 1


def training_dataset(
    split: Split,
    num_classes: int,
    sampler: EpochSampler,
    augmentation: AugmentConfig,
    sharding: BatchSharding,
    *,
    reduced_decoding: bool = True,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Returns this process's shards of the training batches from `first_step` to `last_step`.

    Args:
        split: Training images.
        num_classes: Width of the labels' rows.
        sampler: Order of the images.
        augmentation: Augmentation to apply.
        sharding: Shards of each batch to return.
        reduced_decoding: As in `DataConfig`, for the random resized crop.
        first_step: Global step of the first batch, counted from 0 at the start of the run.
        last_step: Global step at which the data set ends, exclusive.

    Returns:
        A data set of `(images, labels, weights)`: uint8 (float32 in [0, 255] when images are mixed)
        of shape `(count, height, width, channels)`, float32 labels of shape `(count, num_classes)`,
        one-hot for classes,
        and float32 of shape `(count,)`, 1 / (images in the batch) or 0 for a placeholder. Each step
        has `len(sharding.local_replica_ids) * sharding.accumulation_steps` elements.

    Raises:
        DataError: If a shard is too large to crop.
    """
    assert split.image_shape is not None
    shard_images = math.ceil(sampler.global_batch_size / sharding.count)
    _require_croppable(split.image_shape, shard_images, augmentation.crop)
    epochs = tf.data.Dataset.range(
        first_step // sampler.steps_per_epoch, math.ceil(last_step / sampler.steps_per_epoch)
    )
    labels = _to_cpu(split.labels)
    group_size = image_group(augmentation)
    crop = random_crop(augmentation, reduced=reduced_decoding)
    later = replace(augmentation, flip=False, alternate_flip=False) if crop else augmentation
    per_step = len(sharding.local_replica_ids) * sharding.accumulation_steps
    at_first = _to_cpu(sampler.mirrored_at_first()) if augmentation.alternate_flip else None

    @tf.autograph.experimental.do_not_convert
    def steps_of(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.numpy_function(sampler.permutation, [epoch], tf.int64, stateful=False)
        indices.set_shape([sampler.examples])
        start = epoch * sampler.steps_per_epoch
        elements = tf.data.Dataset.range(
            tf.maximum(start, first_step) * per_step,
            tf.minimum(start + sampler.steps_per_epoch, last_step) * per_step,
        )
        # Not a map, whose calls would run sequentially.
        epoch_state = tf.data.Dataset.from_tensors((indices, start)).repeat()
        return tf.data.Dataset.zip(elements, epoch_state)

    def load(element: tf.Tensor, epoch_state: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, ...]:
        permutation, start = epoch_state
        step, shard = sharding.shard_at(element)
        before = (step - start) * sampler.global_batch_size
        total = tf.minimum(sampler.examples - before, sampler.global_batch_size)
        begin, end, weight = sharding.bounds(total, shard, group_size)
        indices = permutation[before + begin : before + end]
        count = end - begin
        random = Randomness(
            seed=tf.stack([tf.cast(sampler.seed, tf.int64), step]),
            offset=begin,
            count=count,
            total=total,
            mirrored=_mirrored(at_first, indices, step // sampler.steps_per_epoch),
        )
        if crop is None:
            images, indices = split.fetch(indices)
        else:
            draws = random.uniform(Stream.RANDOM_RESIZED_CROP, RANDOM_CROP_DRAWS)
            if crop.mirrors:
                draws = tf.concat([draws, flip_draws(random)], 1)
            images, indices = split.fetch(indices, crop, draws)
        targets = _targets(labels, indices, num_classes)
        images, targets = augment(images, targets, later, random)
        return images, targets, tf.fill([count], weight / tf.cast(total, tf.float32))

    batches = epochs.flat_map(steps_of)
    calls = split.parallel_batches(shard_images)
    batches = batches.map(load, num_parallel_calls=calls, deterministic=True)
    shard_bytes = shard_images * math.prod(split.image_shape)
    # Deep enough to ride out a stall; TensorFlow's own choice is too few for small batches.
    return batches.prefetch(max(2, min(8, int(_PREFETCHED_BYTES / shard_bytes))))


@tf.autograph.experimental.do_not_convert
def _mirrored(at_first: tf.Tensor | None, indices: tf.Tensor, epoch: tf.Tensor) -> tf.Tensor | None:
    """Returns which images of a shard are mirrored, or None if flips do not alternate."""
    if at_first is None:
        return None
    return (tf.gather(at_first, indices) + epoch) % 2 == 1


def _require_croppable(shape: tuple[int, ...], images: int, padding: int) -> None:
    height, width, channels = shape
    size = images * (height + 2 * padding) * (width + 2 * padding) * channels
    if padding and size > _MAX_CROP_BYTES:
        raise DataError(
            f"{images} images of {height} x {width} pixels are too large to crop at once "
            f"({size / 2**30:.1f} of 2 GiB); lower --train.batch_size, or raise "
            "--train.accumulation_steps"
        )


def sharded_evaluation_dataset(
    split: Split, num_classes: int, batch_size: int, sharding: BatchSharding
) -> tuple[tf.data.Dataset, int]:
    """Returns this process's shards of a split, which hold every image once over all processes.

    Args:
        split: Images to evaluate.
        num_classes: Width of the labels' rows.
        batch_size: Images per shard and step.
        sharding: Shards of this process; without virtual workers, one for each replica.

    Returns:
        A data set of `(images, labels, weights)` as from `training_dataset`, but with weights 1, or
        0 for a placeholder and in place of a bad image; and the number of steps, the same in every
        process.
    """
    labels = _to_cpu(split.labels)
    if not sharding.adjoining:
        sharding = BatchSharding(sharding.local_replica_ids, sharding.replicas)
    steps = math.ceil(math.ceil(len(split) / sharding.count) / batch_size)

    def load(element: tf.Tensor) -> tuple[tf.Tensor, ...]:
        step, shard = sharding.shard_at(element)
        first, end, weight = sharding.bounds(tf.constant(len(split), tf.int64), shard, 1)
        begin = first + step * batch_size
        stop = tf.minimum(begin + batch_size, end)
        empty = begin >= stop
        begin = tf.where(empty, tf.zeros_like(begin), begin)
        indices = tf.range(begin, tf.where(empty, tf.ones_like(stop), stop))
        weights = tf.fill([tf.size(indices)], tf.where(empty, 0.0, weight))
        images, read = split.fetch(indices)
        weights *= tf.cast(read == indices, tf.float32)  # others replace bad ones
        return images, _targets(labels, indices, num_classes), weights

    per_step = len(sharding.local_replica_ids) * sharding.accumulation_steps
    elements = tf.data.Dataset.range(steps * per_step)
    calls = split.parallel_batches(batch_size)
    batches = elements.map(load, num_parallel_calls=calls, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE), steps


def evaluation_dataset(split: Split, num_classes: int, batch_size: int) -> tf.data.Dataset:
    """Returns batches of every image exactly once, in stored order; the last may be smaller.

    Args:
        split: Images to evaluate.
        num_classes: Width of the labels' rows.
        batch_size: Images per batch.

    Returns:
        A data set of `(images, labels)`: uint8 of shape `(batch, height, width, channels)`, and
        float32 labels of shape `(batch, num_classes)`.
    """
    batches, _ = sharded_evaluation_dataset(split, num_classes, batch_size, BatchSharding())
    return batches.map(_without_weights)


@tf.autograph.experimental.do_not_convert
def _without_weights(
    images: tf.Tensor, labels: tf.Tensor, weights: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    return images, labels


@tf.autograph.experimental.do_not_convert
def _targets(labels: tf.Tensor, indices: tf.Tensor, num_classes: int) -> tf.Tensor:
    """Returns a float32 row for each image: one-hot, its labels as 0 and 1, or its numbers."""
    rows = tf.gather(labels, indices)
    return tf.one_hot(rows, num_classes) if labels.shape.rank == 1 else tf.cast(rows, tf.float32)


def _to_cpu(labels: np.ndarray) -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.constant(labels, tf.int64 if labels.ndim == 1 else labels.dtype)
