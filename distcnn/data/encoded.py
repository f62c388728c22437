"""Splits of encoded images, which are decoded whenever they are read."""

import abc
import copy
import os
from collections.abc import Callable
from typing import Any, Self

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.data.decode import decode_image, decode_plain_crop, decode_planned
from distcnn.data.decode_plan import is_plain_crop, orientations, plan_batch, read_headers
from distcnn.data.framing import WHOLE, Frame, Framing
from distcnn.data.split import Shape, Split

_PARALLEL_CALLS = 16


def parallel_map(
    function: Callable[[Any], tf.Tensor], elements: Any, signature: tf.TensorSpec
) -> tf.Tensor:
    """Applies a function to each element, to several in parallel when in a graph.

    Args:
        function: Maps one element of `elements` to a tensor.
        elements: Tensor of shape `(batch, ...)`, or a tuple of such tensors.
        signature: Shape and dtype of the results of `function`.

    Returns:
        The stacked results, of shape `(batch,) + signature.shape`.
    """
    parallel = None if tf.executing_eagerly() else _PARALLEL_CALLS
    return tf.map_fn(
        function, elements, fn_output_signature=signature, parallel_iterations=parallel
    )


def decode_parallel(
    function: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    contents: tf.Tensor,
    plan: tf.Tensor,
    signature: tf.TensorSpec,
) -> tf.Tensor:
    """Decodes each image of a batch, as many in parallel as there are cores.

    A nested data set keeps its threads busy where the loop of `parallel_map` hands images from one
    thread to another: it decodes up to twice as many images per second on a busy machine.

    Args:
        function: Maps the bytes of a file and its plan to an image.
        contents: string tensor of shape `(batch,)`.
        plan: int32 tensor of shape `(batch, PLAN_WIDTH)`.
        signature: Shape and dtype of the results of `function`.

    Returns:
        The stacked results, of shape `(batch,) + signature.shape`.
    """
    images = tf.data.Dataset.from_tensor_slices((contents, plan))
    images = images.map(function, num_parallel_calls=usable_cores(), deterministic=True)
    images = images.batch(tf.shape(contents, tf.int64)[0]).with_options(_one_thread_each())
    return tf.ensure_shape(images.get_single_element(), (contents.shape[0], *signature.shape))


def _one_thread_each() -> tf.data.Options:
    """Operations are not divided among threads, as each thread has an image of its own."""
    options = tf.data.Options()
    options.threading.max_intra_op_parallelism = 1
    return options


def usable_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


class EncodedSplit(Split):
    """A split whose images are decoded and brought to `image_shape` at each `gather`.

    Subclasses locate the bytes, and set `labels` and `image_shape`.

    Attributes:
        framing: How images are brought to `image_shape`.
    """

    framing: Framing = WHOLE

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

    @abc.abstractmethod
    def stored_bytes(self) -> int:
        """Returns the size of all images in their file format."""

    @override
    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        """Reads and decodes images; works inside a `tf.data` graph.

        Raises:
            ValueError: `resized` has not been called.
            tf.errors.OpError: An image cannot be read or decoded.
        """
        return self.decode(self.read(indices))

    @override
    def crops(self, indices: tf.Tensor, frame: Frame, draws: tf.Tensor) -> tf.Tensor:
        return self.decode(self.read(indices), frame, draws)

    def decode(
        self,
        contents: tf.Tensor,
        frame: Frame | None = None,
        draws: tf.Tensor | None = None,
        headers: tf.Tensor | None = None,
    ) -> tf.Tensor:
        """Decodes images; works inside a `tf.data` graph.

        Args:
            contents: string tensor of shape `(batch,)`, as `read` returns it.
            frame: Chooses the part of each image. Default: `framing`.
            draws: Random numbers for `frame`.
            headers: What `read_headers` returns for `contents`, if that is known.

        Raises:
            ValueError: `resized` has not been called.
            tf.errors.OpError: An image cannot be decoded.
        """
        shape, chosen = self.image_shape, frame or self.framing
        if shape is None:
            raise ValueError("The images vary in size. Call `resized` first.")
        signature = tf.TensorSpec(shape, tf.uint8)
        if isinstance(chosen, Framing) and chosen.is_whole:
            upright = (contents, orientations(contents))
            return parallel_map(
                lambda pair: decode_image(pair[0], shape, pair[1]), upright, signature
            )
        if headers is None:
            headers = read_headers(contents)
        plan = plan_batch(headers, chosen, shape, draws)

        def planned(contents: tf.Tensor, plan: tf.Tensor) -> tf.Tensor:
            return decode_planned(contents, plan, shape, chosen)

        def cut(contents: tf.Tensor, plan: tf.Tensor) -> tf.Tensor:
            return decode_plain_crop(contents, plan, shape)

        if chosen.pads or chosen.antialias:
            return decode_parallel(planned, contents, plan, signature)
        return tf.cond(
            tf.reduce_all(is_plain_crop(plan, shape)),
            lambda: decode_parallel(cut, contents, plan, signature),
            lambda: decode_parallel(planned, contents, plan, signature),
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
    def resized(self, image_shape: Shape, framing: Framing = WHOLE) -> Self:
        """Returns a split whose images are brought to a size when they are read."""
        part = copy.copy(self)
        part.image_shape, part.framing = image_shape, framing
        return part
