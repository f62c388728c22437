"""Decodes all encoded images in one pass and finds every bad one."""

from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from distcnn.data.decode import failure_reason
from distcnn.data.encoded import EncodedSplit
from distcnn.data.image_file import shown_path
from distcnn.data.progress import progress_bar
from distcnn.runtime.text import printable

_BATCH_SIZE = 16


def decode_all(
    split: EncodedSplit, store: Callable[[np.ndarray, np.ndarray], None] | None = None
) -> list[int]:
    """Decodes all images in parallel and in no particular order.

    Args:
        split: The images; `image_shape` is set.
        store: Called with indices, int64 `(chunk,)`, and images, uint8 `(chunk,) + image_shape`.

    Returns:
        The sorted indices of the images that cannot be read or decoded.
    """
    good = np.zeros(len(split), bool)
    with progress_bar("Decoding images", len(split)) as advance:
        # A bad image fails its whole batch, whose images are then decoded one by one.
        for batch_size in (_BATCH_SIZE, 1):
            dataset = (
                tf.data.Dataset.from_tensor_slices(np.flatnonzero(~good))
                .batch(batch_size)
                .map(
                    lambda indices: (indices, split.gather(indices)),
                    num_parallel_calls=tf.data.AUTOTUNE,
                    deterministic=False,
                )
                .ignore_errors()
                .prefetch(1)
            )
            for indices, images in dataset.as_numpy_iterator():
                good[indices] = True
                if store is not None:
                    store(indices, images)
                advance(len(indices))
    return np.flatnonzero(~good).tolist()


def explain(split: EncodedSplit, indices: Sequence[int]) -> list[str]:
    """Returns the location of each bad image and why it cannot be decoded, as `path (reason)`.

    Control characters of a path are escaped.
    """
    gather = tf.function(split.gather, input_signature=[tf.TensorSpec([1], tf.int64)])
    texts = []
    with progress_bar("Examining bad images", len(indices)) as advance:
        for index in indices:
            reason, location = "cannot be read", split.describe(index)
            try:
                gather(tf.constant([index], tf.int64))
            except tf.errors.OpError as error:
                reason = failure_reason(error).removeprefix(f"{shown_path(location)}: ")
            texts.append(f"{printable(location)} ({printable(reason)})")
            advance(1)
    return texts
