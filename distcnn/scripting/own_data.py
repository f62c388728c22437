"""The data that `data.factory` returns, as the arguments of Keras' `fit` and `evaluate`."""

import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.config.lookup import import_object
from distcnn.errors import DataError

_SPLITS = ("train", "validation", "test")
_STREAMS = (tf.data.Dataset, keras.utils.PyDataset)


@dataclass(frozen=True)
class OwnSplit:
    """One part of the data.

    Attributes:
        data: Arrays as `(x, y)` or `(x, y, sample_weight)`, a `tf.data.Dataset` or a `PyDataset`.
    """

    data: Any

    @property
    def is_stream(self) -> bool:
        """Whether the data make their batches themselves."""
        return isinstance(self.data, _STREAMS)

    @property
    def rows(self) -> int | None:
        """Number of examples, if they are in arrays."""
        return None if self.is_stream else len(keras.tree.flatten(self.data)[0])

    def arguments(self, batch_size: int) -> dict[str, Any]:
        """Returns the data as arguments of `fit` and `evaluate`.

        Args:
            batch_size: Examples in a batch over all workers, for arrays.
        """
        if self.is_stream:
            return {"x": self.data}
        names = ("x", "y", "sample_weight")
        return {**dict(zip(names, self.data, strict=False)), "batch_size": batch_size}

    def content_hash(self) -> str | None:
        """Returns a hexadecimal hash of the data, if they are in arrays."""
        if self.is_stream:
            return None
        digest = hashlib.sha256()
        for part in keras.tree.flatten(self.data):
            array = np.ascontiguousarray(part)
            digest.update(f"{array.dtype.str} {array.shape}".encode())
            digest.update(repr(array.tolist()).encode() if array.dtype.hasobject else array.data)
        return digest.hexdigest()


@dataclass(frozen=True)
class OwnData:
    """The data of a run.

    Attributes:
        train: Data to train on.
        validation: Data to validate on after every epoch, or None.
        test: Data to test on once at the end, or None.
    """

    train: OwnSplit
    validation: OwnSplit | None
    test: OwnSplit | None

    def content_hash(self) -> str:
        """Returns a hexadecimal hash that changes whenever arrays do; streams do not count."""
        parts = [part.content_hash() if part else None for part in (self.train, self.validation)]
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def load_own_data(config: DataConfig) -> OwnData:
    """Calls `data.factory`.

    Raises:
        UsageError: If there is no such function.
        DataError: If it returns something else than expected.
    """
    assert config.factory is not None
    name = config.factory
    found = import_object(name, "data.factory")()
    if not isinstance(found, Mapping):
        raise DataError(
            f"{name} returned a {type(found).__name__}; expected a dictionary with train and, "
            "where there are, validation and test"
        )
    unknown = [key for key in found if key not in _SPLITS]
    if unknown or found.get("train") is None:
        raise DataError(
            f"{name} returned a dictionary of {', '.join(map(repr, found)) or 'nothing'}; expected "
            "train and, where there are, validation and test"
        )
    parts = {key: _split(f"{key} of {name}", found.get(key)) for key in _SPLITS}
    train = parts["train"]
    assert train is not None
    return OwnData(train, parts["validation"], parts["test"])


def file_of(path: str) -> Path:
    """Returns the file of the module of an imported `package.module:function`."""
    return Path(str(sys.modules[path.partition(":")[0]].__file__))


def _split(name: str, data: Any) -> OwnSplit | None:
    if data is None:
        return None
    if isinstance(data, _STREAMS):
        return OwnSplit(data)
    if not isinstance(data, tuple | list) or not 2 <= len(data) <= 3:
        raise DataError(
            f"{name} is a {type(data).__name__}; expected (x, y), (x, y, sample_weight), a "
            "tf.data.Dataset or a keras.utils.PyDataset"
        )
    arrays = [part for part in keras.tree.flatten(data) if part is not None]
    lengths = sorted({len(part) for part in arrays})
    if len(lengths) != 1 or lengths == [0]:
        raise DataError(
            f"{name} has arrays of {', '.join(map(str, lengths))} rows; expected the same number, "
            "at least 1, in each"
        )
    return OwnSplit(tuple(data))
