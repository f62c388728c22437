"""Parses CIFAR batches, pickled or binary, without trusting their content."""

import numpy as np

from distcnn.data.batch_pickle import MAX_PIXELS, PickledArray, read_batch_pickle

_PIXELS = 3 * 32 * 32

MAX_BATCH_BYTES = 2 * MAX_PIXELS + (32 << 20)
"""The most bytes of a batch in any format: pixels pickled as text, with labels and file names."""


def read_python_batch(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses a batch of the Python version, a pickled dictionary.

    Nothing that the pickle names is called; see `batch_pickle`.

    Args:
        content: Bytes of the file.
        label_bytes: 1 for CIFAR-10 (key labels), 2 for CIFAR-100 (key fine_labels).

    Returns:
        uint8 images `(n, 32, 32, 3)` and int64 labels `(m,)`.

    Raises:
        ValueError: The content is not a valid batch.
    """
    try:
        batch = read_batch_pickle(content)
    except ValueError as error:
        raise ValueError(f"the pickle was rejected: {error}") from error
    key = b"labels" if label_bytes == 1 else b"fine_labels"
    if not {b"data", key} <= set(batch):
        raise ValueError(f"expected a dictionary with data and {key.decode()}")
    data = batch[b"data"]
    if not isinstance(data, PickledArray):
        raise ValueError(
            f"its data is {type(data).__name__}; expected uint8 of shape (n, {_PIXELS})"
        )
    if data.shape is None or len(data.shape) != 2 or data.shape[1] != _PIXELS:
        raise ValueError(f"its data is {data.shape}; expected uint8 of shape (n, {_PIXELS})")
    labels = batch[key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"its {key.decode()} are not a list of integers")
    return _to_images(data.load()), np.array(labels, np.int64)


def read_binary_batch(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses a batch of the binary version: the label, then the pixels of each image.

    Args:
        content: Bytes of the file.
        label_bytes: Bytes before the pixels, the last of which is the label: 1 for CIFAR-10, 2
            (coarse, fine) for CIFAR-100.

    Returns:
        uint8 images `(n, 32, 32, 3)` and int64 labels `(n,)`.

    Raises:
        ValueError: The content is not a whole number of records.
    """
    record = label_bytes + _PIXELS
    if not content or len(content) % record:
        raise ValueError(f"it has {len(content)} bytes; expected a multiple of {record}")
    records = np.frombuffer(content, np.uint8).reshape(-1, record)
    return _to_images(records[:, label_bytes:]), records[:, label_bytes - 1].astype(np.int64)


def _to_images(pixels: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
