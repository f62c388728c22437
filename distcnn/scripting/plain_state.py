"""Python values in checkpoints: what JSON and arrays represent exactly, and nothing else."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

PREFIX = "plain/"
"""Start of the names of the arrays that hold parts of Python values."""


def encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """Returns a description of a value that JSON can represent.

    Args:
        value: None, a bool, number, text, array, or lists, tuples, sets and dictionaries of them.
        arrays: Receives the arrays in the value.

    Raises:
        TypeError: The value, or a part of it, is of another type.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if kind in (list, tuple, set):
        return {kind.__name__: [encode(part, arrays) for part in value]}
    if kind is dict:
        return {"dict": [[encode(k, arrays), encode(v, arrays)] for k, v in value.items()]}
    if isinstance(value, np.generic | np.ndarray) and value.dtype.kind in "biufU":
        name = f"{PREFIX}{len(arrays)}"
        arrays[name] = np.array(value)
        return {"array" if kind is np.ndarray else "scalar": name}
    raise TypeError(f"a value of {kind.__qualname__} cannot be saved")


def decode(description: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    """Returns the value that `encode` has described."""
    if not isinstance(description, dict):
        return description
    ((kind, content),) = description.items()
    if kind == "array":
        return np.array(arrays[content])
    if kind == "scalar":
        return arrays[content][()]
    if kind == "dict":
        return {decode(k, arrays): decode(v, arrays) for k, v in content}
    parts = [decode(part, arrays) for part in content]
    return {"list": list, "tuple": tuple, "set": set}[kind](parts)


def digest(value: Any) -> str | None:
    """Returns a hash of a value, or None if it cannot be encoded."""
    arrays: dict[str, np.ndarray] = {}
    try:
        text = json.dumps(encode(value, arrays))
    except (TypeError, ValueError, RecursionError):
        return None
    found = hashlib.sha256(text.encode())
    for array in arrays.values():
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(array.tobytes())
    return found.hexdigest()
