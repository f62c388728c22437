"""The abstraction behind every data source: images that can be read by index.

However the images are stored (an array, files, record shards), the pipeline only asks a `Split` for
the images at given indices. Order, sharding, caching and resuming are the same for every source.
"""

import abc
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import tensorflow as tf

from distcnn.config.task import Task
from distcnn.data.decoded_crops import crop_decoded
from distcnn.data.framing import WHOLE, Frame, Framing, Shape


class Split(abc.ABC):
    """Labelled images that are read by index.

    Attributes:
        labels: int64 array of shape `(len(split),)`, class indices; or where images have several
            labels, bool `(len(split), classes)`; or float32 `(len(split), numbers)`.
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

    def crops(self, indices: tf.Tensor, frame: Frame, draws: tf.Tensor) -> tf.Tensor:
        """Reads a part of each image, resized to `image_shape`; works inside a `tf.data` graph.

        Args:
            indices: int64 tensor of shape `(batch,)`.
            frame: Chooses the parts.
            draws: Random numbers for `frame`, float32 `(batch, any)`.

        Returns:
            uint8 tensor of shape `(batch, height, width, channels)`.
        """
        return crop_decoded(self.gather(indices), frame, draws)

    def fetch(
        self, indices: tf.Tensor, frame: Frame | None = None, draws: tf.Tensor | None = None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Reads images, or others in place of bad ones; works inside a `tf.data` graph.

        Args:
            indices: int64 tensor of shape `(batch,)`.
            frame: Chooses a part of each image. Default: images as `gather` returns them.
            draws: Random numbers for `frame`.

        Returns:
            The images as from `gather` or `crops`, and the indices of the images that were read.
        """
        if frame is None or draws is None:
            return self.gather(indices), indices
        return self.crops(indices, frame, draws), indices

    def parallel_batches(self, batch_size: int) -> int:
        """Returns how many batches of a size to read in parallel, or `tf.data.AUTOTUNE`."""
        return int(tf.data.AUTOTUNE)

    def unreadable(self) -> np.ndarray:
        """Returns the sorted indices of the images that others have replaced, int64."""
        return np.zeros(0, np.int64)

    def names(self) -> Sequence[bytes]:
        """Returns a name for each image: that of its file, or where there is none, its position."""
        return [str(index).encode() for index in range(len(self))]

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
    def resized(self, image_shape: Shape, framing: Framing = WHOLE) -> "Split":
        """Returns a split with its images brought to `image_shape`, grey or colour.

        Args:
            image_shape: `(height, width, channels)`.
            framing: Which part of each image is used, and how it is resized.
        """


@dataclass(frozen=True)
class Source:
    """An opened data set.

    Attributes:
        name: Name in the configuration.
        classes: Class names; the position is the label. Where labels are numbers, their names.
        train: Training images, or None.
        validation: The data set's own validation images, or None.
        test: Test images, or None.
        image_shape: Stored `(height, width, channels)`, or None if the sizes vary.
        task: What the labels are: one class for each image, any number of them, or numbers.
        reading: How labels were read, for the log; empty where there is nothing to say.
        is_undivided: Whether `train` holds all images, as the data set itself has no splits.
        division: How test images were drawn, for the log; empty if they were not.
    """

    name: str
    classes: tuple[str, ...]
    train: Split | None
    validation: Split | None
    test: Split | None
    image_shape: Shape | None
    task: Task = "classification"
    reading: str = ""
    is_undivided: bool = False
    division: str = ""

    def content_hash(self) -> str:
        """Returns a hexadecimal hash that changes whenever images, labels or classes do."""
        digest = hashlib.sha256("\0".join(self.classes).encode("utf-8", "surrogateescape"))
        for name in ("train", "validation", "test"):
            split: Split | None = getattr(self, name)
            if split is not None:
                digest.update(f"{name} {split.content_hash()}".encode())
                digest.update(np.ascontiguousarray(split.labels).tobytes())
        return digest.hexdigest()
