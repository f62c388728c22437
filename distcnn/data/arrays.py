"""Splits of decoded images, held in memory or in a file."""

import zlib
from collections.abc import Callable
from typing import Self

import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.data.decoded_crops import frame_decoded
from distcnn.data.decoded_file import DecodedFile
from distcnn.data.framing import WHOLE, Framing
from distcnn.data.split import Shape, Split

_CHUNK_BYTES = 32 << 20


class _MemoryReader:
    """Reads rows of a uint8 tensor in main memory, created at the first read."""

    def __init__(self, images: np.ndarray) -> None:
        self._images: np.ndarray | None = images
        self._tensor: tf.Tensor | None = None

    @tf.autograph.experimental.do_not_convert
    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        if self._tensor is None:
            # Created eagerly, so that graphs capture it by reference instead of holding a copy.
            with tf.init_scope(), tf.device("CPU:0"):
                self._tensor = tf.convert_to_tensor(self._images)
            self._images = None
        return tf.gather(self._tensor, rows)


class _FileReader:
    """Reads rows of a file; only the requested rows are loaded."""

    def __init__(self, images: np.memmap | DecodedFile) -> None:
        self._images = images

    @tf.autograph.experimental.do_not_convert
    def __call__(self, rows: tf.Tensor) -> tf.Tensor:
        pixels = tf.numpy_function(self._read, [rows], tf.uint8, stateful=False)
        return tf.ensure_shape(pixels, (rows.shape[0], *self._images.shape[1:]))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        return np.asarray(self._images[rows])


class ArraySplit(Split):
    """A split over an array of decoded images.

    Subsets share the array of the original split and store only row numbers.

    Args:
        images: uint8 array of shape `(n, height, width, channels)`. A `DecodedFile` and a
            `np.memmap` are never loaded as a whole; any other array becomes one tensor in main
            memory at the first `gather`.
        labels: Integer array of shape `(n,)`, class indices; or rows as in `Split`.

    Raises:
        ValueError: An array has another dtype or shape.
    """

    image_shape: Shape

    def __init__(self, images: np.ndarray | DecodedFile, labels: np.ndarray) -> None:
        if images.dtype != np.uint8 or images.ndim != 4 or labels.shape[:1] != images.shape[:1]:
            raise ValueError(
                f"Received images {images.dtype} {images.shape}, labels {labels.shape}. "
                "Expected uint8 (n, height, width, channels) and (n,)."
            )
        height, width, channels = images.shape[1:]
        self.image_shape = (height, width, channels)
        self.labels = labels.astype(np.int64) if labels.ndim == 1 else labels
        with tf.device("CPU:0"):
            self._rows = tf.range(len(labels), dtype=tf.int64)
        self._read: Callable[[tf.Tensor], tf.Tensor] = (
            _FileReader(images)
            if isinstance(images, np.memmap | DecodedFile)
            else _MemoryReader(images)
        )

    @override
    @tf.autograph.experimental.do_not_convert
    def gather(self, indices: tf.Tensor) -> tf.Tensor:
        with tf.device("CPU:0"):
            return self._read(tf.gather(self._rows, indices))

    @override
    def content_hash(self) -> str:
        """Hashes the pixels; a few tenths of a second for CIFAR-10's 60,000 images."""
        checksum = 0
        chunk = max(1, _CHUNK_BYTES // int(np.prod(self.image_shape)))
        for start in range(0, len(self), chunk):
            rows = np.arange(start, min(start + chunk, len(self)))
            checksum = zlib.crc32(np.ascontiguousarray(self.gather(rows).numpy()).data, checksum)
        return f"{checksum:08x}"

    @override
    def subset(self, indices: np.ndarray) -> Self:
        part = object.__new__(type(self))
        part.image_shape = self.image_shape
        part.labels = self.labels[indices]
        with tf.device("CPU:0"):
            part._rows = tf.gather(self._rows, indices)
        part._read = self._read
        return part

    @override
    def resized(self, image_shape: Shape, framing: Framing = WHOLE) -> "ArraySplit":
        """Resizes all images at once, in memory."""
        if image_shape == self.image_shape and framing.crop_fraction == 1:
            return self
        images = np.empty((len(self), *image_shape), np.uint8)
        image_bytes = max(int(np.prod(image_shape)), int(np.prod(self.image_shape)))
        chunk = max(1, _CHUNK_BYTES // image_bytes)
        for start in range(0, len(self), chunk):
            indices = np.arange(start, min(start + chunk, len(self)))
            images[indices] = frame_decoded(self.gather(indices), image_shape, framing).numpy()
        return ArraySplit(images, self.labels)
