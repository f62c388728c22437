"""From a split to batches: order, reading, augmentation, prefetch.

The order is a pure function of (seed, epoch, position), so a run can begin at any step and any
worker can compute its share of any batch. Images stay uint8 until the model scales them, unless an
augmentation mixes them.
"""

import math
from dataclasses import dataclass

import numpy as np
import tensorflow as tf

from distcnn.config import AugmentConfig
from distcnn.data.augment import Randomness, augment
from distcnn.data.split import Split


@dataclass(frozen=True)
class EpochOrder:
    """In which order the training images are seen.

    Attributes:
        examples: Number of training images.
        global_batch_size: Images per step over all workers; the last step of an epoch has the rest.
        seed: Seed of the shuffling.
    """

    examples: int
    global_batch_size: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps in which every image is seen once."""
        return math.ceil(self.examples / self.global_batch_size)

    def images_before(self, step: int) -> int:
        """Returns the number of images seen, over all epochs, before a global step."""
        epoch, in_epoch = divmod(step, self.steps_per_epoch)
        return epoch * self.examples + min(in_epoch * self.global_batch_size, self.examples)

    def permutation(self, epoch: int) -> np.ndarray:
        """Returns the image indices of an epoch in order, int64 of shape `(examples,)`."""
        random = np.random.Generator(np.random.Philox([self.seed, epoch]))
        return random.permutation(self.examples)


def training_dataset(
    split: Split,
    num_classes: int,
    order: EpochOrder,
    augmentation: AugmentConfig,
    *,
    first_step: int,
    last_step: int,
) -> tf.data.Dataset:
    """Returns the training batches of the global steps from `first_step` up to `last_step`.

    Args:
        split: Training images.
        num_classes: Width of the one-hot labels.
        order: Order of the images.
        augmentation: What is done to them.
        first_step: Global step of the first batch, counted from 0 at the start of the run.
        last_step: Global step before which the data set ends.

    Returns:
        A data set of `(images, labels)`: uint8 (float32 in [0, 255] when images are mixed) of shape
        `(batch, height, width, channels)`, and float32 one-hot of shape `(batch, num_classes)`.
    """
    epochs = tf.data.Dataset.range(
        first_step // order.steps_per_epoch, math.ceil(last_step / order.steps_per_epoch)
    )
    labels = _resident(split.labels)

    def steps_of(epoch: tf.Tensor) -> tf.data.Dataset:
        indices = tf.numpy_function(order.permutation, [epoch], tf.int64, stateful=False)
        indices.set_shape([order.examples])
        start = epoch * order.steps_per_epoch
        steps = tf.data.Dataset.range(
            tf.maximum(start, first_step), tf.minimum(start + order.steps_per_epoch, last_step)
        )

        def batch_of(step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            first = (step - start) * order.global_batch_size
            return step, indices[first : first + order.global_batch_size]

        return steps.map(batch_of)

    def load(step: tf.Tensor, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        count = tf.size(indices)
        random = Randomness(
            seed=tf.stack([tf.cast(order.seed, tf.int64), step]),
            offset=tf.constant(0),
            count=count,
            total=count,
        )
        targets = tf.one_hot(tf.gather(labels, indices), num_classes)
        return augment(split.gather(indices), targets, augmentation, random)

    batches = epochs.flat_map(steps_of)
    batches = batches.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def evaluation_dataset(split: Split, num_classes: int, batch_size: int) -> tf.data.Dataset:
    """Returns every image exactly once, in stored order; the last batch may be smaller.

    Args:
        split: Images to evaluate.
        num_classes: Width of the one-hot labels.
        batch_size: Images per batch.

    Returns:
        A data set of `(images, labels)`: uint8 of shape `(batch, height, width, channels)`, and
        float32 one-hot of shape `(batch, num_classes)`.
    """
    labels = _resident(split.labels)

    def load(indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return split.gather(indices), tf.one_hot(tf.gather(labels, indices), num_classes)

    indices = tf.data.Dataset.range(len(split)).batch(batch_size)
    batches = indices.map(load, num_parallel_calls=tf.data.AUTOTUNE, deterministic=True)
    return batches.prefetch(tf.data.AUTOTUNE)


def _resident(labels: np.ndarray) -> tf.Tensor:
    with tf.device("CPU:0"):
        return tf.constant(labels, tf.int64)
