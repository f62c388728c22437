"""One of each thing that can be added to a table, as a package of a user's own would write it."""

from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.config import DataConfig, DistributeConfig, OptimizerConfig
from distcnn.data.arrays import ArraySplit
from distcnn.data.augment import Randomness
from distcnn.data.split import Source
from distcnn.distribute.base import Backend
from distcnn.distribute.tensorflow import OneDevice
from distcnn.optim.schedules import Span
from distcnn.runtime.cluster import Cluster


def open_stripes(config: DataConfig) -> Source:
    """A data set: bright upper halves against bright lower halves."""
    labels = np.arange(48) % 2
    images = np.zeros((48, 8, 8, 1), np.uint8)
    images[labels == 0, :4] = 255
    images[labels == 1, 4:] = 255
    split = ArraySplit(images, labels)
    return Source(config.name, ("upper", "lower"), split, None, split, (8, 8, 1))


def linear(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Flatten(),
            keras.layers.Dense(num_classes, activation="softmax", dtype="float32"),
        ]
    )


def nadam(config: OptimizerConfig, common: Mapping[str, Any]) -> keras.optimizers.Optimizer:
    """An optimizer."""
    return keras.optimizers.Nadam(**common)


def halving(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """A schedule: the rate halves every epoch."""
    return 0.5 ** tf.floor(step / span.steps_per_epoch)


def invert(
    images: tf.Tensor, labels: tf.Tensor, strength: float, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """An augmentation: inverts each image with probability `strength`."""
    chosen = random.uniform("invert", 1)[:, :, None, None] < strength
    return tf.where(chosen, 255 - images, images), labels


def darken_if_bright(
    images: tf.Tensor, labels: tf.Tensor, strength: float, random: Randomness
) -> tuple[tf.Tensor, tf.Tensor]:
    """An augmentation with a Python branch on a tensor, which AutoGraph converts."""
    if tf.reduce_max(images) > 200:
        images = tf.cast(tf.cast(images, tf.float32) * strength, tf.uint8)
    return images, labels


class Renamed(OneDevice):
    """A backend: a single device under another name."""

    name = "renamed"


def build_renamed(config: DistributeConfig, cluster: Cluster) -> Backend:
    """Builds the backend of a strategy."""
    return Renamed()


def greet(arguments: Sequence[str]) -> int:
    """A command."""
    print("hello", *arguments)
    return 0
