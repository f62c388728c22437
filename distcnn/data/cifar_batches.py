"""Parses CIFAR batches, pickled or binary, without trusting their content."""

import io
import pickle
from typing import Any

import numpy as np

_PIXELS = 3 * 32 * 32
# All that the official batches refer to: the building blocks of a pickled NumPy array.
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
}


class _ArrayUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which no batch needs")
        return _ALLOWED[module, name]


def read_python_batch(content: bytes, label_bytes: int) -> tuple[np.ndarray, np.ndarray]:
    """Parses a batch of the Python version, a pickled dictionary.

    No code in the pickle runs: it can only build dictionaries, lists, numbers, strings and arrays.

    Args:
        content: Bytes of the file.
        label_bytes: 1 for CIFAR-10 (key labels), 2 for CIFAR-100 (key fine_labels).

    Returns:
        uint8 images `(n, 32, 32, 3)` and int64 labels `(m,)`.

    Raises:
        ValueError: The content is not a valid batch.
    """
    try:
        batch = _ArrayUnpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise ValueError(f"the pickle was rejected: {error}") from error
    key = b"labels" if label_bytes == 1 else b"fine_labels"
    if not isinstance(batch, dict) or not {b"data", key} <= set(batch):
        raise ValueError(f"expected a dictionary with data and {key.decode()}")
    data = batch[b"data"]
    is_data = isinstance(data, np.ndarray) and data.dtype == np.uint8
    if not is_data or data.ndim != 2 or data.shape[1] != _PIXELS:
        shape = getattr(data, "shape", type(data).__name__)
        raise ValueError(f"its data is {shape}; expected uint8 of shape (n, {_PIXELS})")
    labels = batch[key]
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise ValueError(f"its {key.decode()} are not a list of integers")
    return _to_images(data), np.array(labels, np.int64)


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
