"""Images that are held as the bytes of their files and decoded when they are read."""

import abc
import copy
from collections.abc import Callable
from typing import Self

import numpy as np
import tensorflow as tf

from distcnn.data.decode import decode_image
from distcnn.data.split import Shape, Split

_PARALLEL_CALLS = 16


def parallel_map(
    function: Callable[[tf.Tensor], tf.Tensor], elements: tf.Tensor, signature: tf.TensorSpec
) -> tf.Tensor:
    """Applies a function to each element; in a graph, to several at a time.

    Args:
        function: Takes one element of `elements`, returns a tensor.
        elements: Tensor of shape `(batch, ...)`.
        signature: Shape and type of what `function` returns.

    Returns:
        The results stacked, of shape `(batch,) + signature.shape`.
    """
    parallel = None if tf.executing_eagerly() else _PARALLEL_CALLS
    return tf.map_fn(
        function, elements, fn_output_signature=signature, parallel_iterations=parallel
    )


class EncodedSplit(Split):
    """A split whose images are decoded and stretched to `image_shape` at each `gather`.

    A subclass says where the bytes are; it sets `labels` and `image_shape`.
    """

    @abc.abstractmethod
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads image files; works inside a `tf.data` graph.

        Args:
            indices: int64 tensor of shape `(batch,)`.

        Returns:
            string tensor of shape `(batch,)`, the bytes of each image file.
        """

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Returns where the image at `index` is stored, for messages."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a hash in hexadecimal that changes when the stored images or their order do.

        Raises:
            DataError: The images are no longer there.
        """

    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        """See `Split.gather`.

        Raises:
            ValueError: No size was chosen with `resized`.
            tf.errors.OpError: An image cannot be read or decoded.
        """
        shape = self.image_shape
        if shape is None:
            raise ValueError("The images vary in size. Choose one with `resized` first.")
        return parallel_map(
            lambda contents: decode_image(contents, shape),
            self.read(indices),
            tf.TensorSpec(shape, tf.uint8),
        )

    def subset(self, indices: np.ndarray) -> Self:
        """See `Split.subset`."""
        part = copy.copy(self)
        part.labels = self.labels[indices]
        part._select(indices)
        return part

    @abc.abstractmethod
    def _select(self, indices: np.ndarray) -> None:
        """Keeps what locates the images at `indices` only; called on a fresh copy."""

    def resized(self, image_shape: Shape) -> Self:
        """See `Split.resized`; the images are stretched when they are read."""
        part = copy.copy(self)
        part.image_shape = image_shape
        return part
