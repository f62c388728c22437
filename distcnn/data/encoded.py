"""Splits of encoded images, which are decoded whenever they are read."""

import abc
import copy
from collections.abc import Callable
from typing import Self

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.data.decode import decode_image
from distcnn.data.split import Shape, Split

_PARALLEL_CALLS = 16


def parallel_map(
    function: Callable[[tf.Tensor], tf.Tensor], elements: tf.Tensor, signature: tf.TensorSpec
) -> tf.Tensor:
    """Applies a function to each element, to several in parallel when in a graph.

    Args:
        function: Maps one element of `elements` to a tensor.
        elements: Tensor of shape `(batch, ...)`.
        signature: Shape and dtype of the results of `function`.

    Returns:
        The stacked results, of shape `(batch,) + signature.shape`.
    """
    parallel = None if tf.executing_eagerly() else _PARALLEL_CALLS
    return tf.map_fn(
        function, elements, fn_output_signature=signature, parallel_iterations=parallel
    )


class EncodedSplit(Split):
    """A split whose images are decoded and stretched to `image_shape` at each `gather`.

    Subclasses locate the bytes, and set `labels` and `image_shape`.
    """

    @abc.abstractmethod
    def read(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads the bytes of images; works inside a `tf.data` graph.

        Args:
            indices: int64 tensor of shape `(batch,)`.

        Returns:
            string tensor of shape `(batch,)`, each image in its file format.
        """

    @abc.abstractmethod
    def describe(self, index: int) -> str:
        """Returns the location of the image at `index`, for messages."""

    @abc.abstractmethod
    def fingerprint(self) -> str:
        """Returns a hexadecimal hash that changes whenever the stored images or their order do.

        Raises:
            DataError: The images no longer exist.
        """

    @override
    def content_hash(self) -> str:
        return self.fingerprint()

    @override
    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads, decodes and stretches images; works inside a `tf.data` graph.

        Raises:
            ValueError: `resized` has not been called.
            tf.errors.OpError: An image cannot be read or decoded.
        """
        shape = self.image_shape
        if shape is None:
            raise ValueError("The images vary in size. Call `resized` first.")
        return parallel_map(
            lambda contents: decode_image(contents, shape),
            self.read(indices),
            tf.TensorSpec(shape, tf.uint8),
        )

    @override
    def subset(self, indices: np.ndarray) -> Self:
        part = copy.copy(self)
        part.labels = self.labels[indices]
        part._select(indices)
        return part

    @abc.abstractmethod
    def _select(self, indices: np.ndarray) -> None:
        """Restricts this split, a fresh copy, to the images at `indices`."""

    @override
    def resized(self, image_shape: Shape) -> Self:
        """Returns a split whose images are stretched when they are read."""
        part = copy.copy(self)
        part.image_shape = image_shape
        return part
