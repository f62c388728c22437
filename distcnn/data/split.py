"""The abstraction behind every data source: images that can be read by index.

However the images are stored (an array, files, record shards), the pipeline only asks a `Split` for
the images at given indices. Order, sharding, caching and resuming are the same for every source.
"""

import abc
import hashlib
from dataclasses import dataclass
from typing import Self

import numpy as np
import tensorflow as tf

Shape = tuple[int, int, int]


class Split(abc.ABC):
    """Labelled images that are read by index.

    Attributes:
        labels: int64 array of shape `(len(split),)`, class indices.
        image_shape: `(height, width, channels)` of the images that `gather` returns, or None if
            the stored images vary in size and `resized` has not been called.
    """

    labels: np.ndarray
    image_shape: Shape | None

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads images; works inside a `tf.data` graph.

        Args:
            indices: int64 tensor of shape `(batch,)`.

        Returns:
            uint8 tensor of shape `(batch, height, width, channels)`.
        """

    @abc.abstractmethod
    def content_hash(self) -> str:
        """Returns a hexadecimal hash of the stored images, their order and their names.

        Images in files count by name, size and modification time. Where the data set lies does not
        matter.
        """

    @abc.abstractmethod
    def subset(self, indices: np.ndarray) -> Self:
        """Returns a split of the images at `indices` (int64 array), in that order."""

    @abc.abstractmethod
    def resized(self, image_shape: Shape) -> "Split":
        """Returns a split with its images stretched to `image_shape`, grey or colour."""


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        name: Name in the configuration.
        classes: Class names; the position is the label.
        train: Training images, or None.
        validation: The data set's own validation images, or None.
        test: Test images, or None.
        image_shape: Stored `(height, width, channels)`, or None if the sizes vary.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | None
    validation: Split | None
    test: Split | None
    image_shape: Shape | None

    def content_hash(self) -> str:
        """Returns a hexadecimal hash that changes whenever images, labels or classes do."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is not None:
                digest.update(f"{name} {split.content_hash()}".encode())
                digest.update(np.ascontiguousarray(split.labels).tobytes())
        return digest.hexdigest()
