"""The state of the user's callbacks in checkpoints, so that a resumed run continues exactly.

Keras' callbacks are known by type. A callback of the user's own takes part if it has the methods
`state_dict()`, which returns a mapping from names to values (numbers, text, lists, None, arrays or
lists of arrays), and `load_state_dict(state)`, which is called after `on_train_begin`.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from distcnn.distribute.base import Backend
from distcnn.runtime.files import parse_json
from distcnn.storage.checkpoint import CALLBACKS

log = logging.getLogger("distcnn")

_ATTRIBUTES: dict[type, tuple[str, ...]] = {
    keras.callbacks.EarlyStopping: (
        *("wait", "best", "best_epoch", "stopped_epoch"),
        "best_weights",
    ),
    keras.callbacks.ReduceLROnPlateau: ("wait", "best", "cooldown_counter"),
    keras.callbacks.ModelCheckpoint: ("best",),
}
"""What Keras' callbacks remember from epoch to epoch."""

Indexed = Sequence[tuple[int, keras.callbacks.Callback]]
"""Callbacks with their place among all of the user's; not every rank runs all of them."""


def save_callbacks(callbacks: Indexed) -> dict[str, np.ndarray]:
    """Returns the state of callbacks as arrays for a checkpoint.

    Args:
        callbacks: The user's callbacks that run in this process.

    Returns:
        Arrays by name, among them a description in JSON; empty if no callback has a state.
    """
    arrays: dict[str, np.ndarray] = {}
    description: dict[str, Any] = {}
    for index, callback in callbacks:
        state = _state_of(callback)
        if state is None:
            continue
        entry: dict[str, Any] = {"type": _name(callback), "plain": {}, "arrays": {}}
        for name, value in state.items():
            parts = _arrays_in(value)
            if parts is None:
                entry["plain"][name] = value.item() if isinstance(value, np.generic) else value
                continue
            keys = [f"{CALLBACKS}{index}/{name}/{number}" for number in range(len(parts))]
            # Copied, as the callback may change them while the checkpoint is written.
            arrays |= {key: np.array(part) for key, part in zip(keys, parts, strict=True)}
            entry["arrays"][name] = {"keys": keys, "is_list": isinstance(value, list | tuple)}
        description[str(index)] = entry
    if description:
        text = json.dumps(description).encode()
        arrays[f"{CALLBACKS}description"] = np.frombuffer(text, np.uint8)
    return arrays


def load_callbacks(callbacks: Indexed, arrays: Mapping[str, np.ndarray], backend: Backend) -> None:
    """Gives callbacks the state that a checkpoint holds; called in all processes together.

    Args:
        callbacks: The user's callbacks that run in this process.
        arrays: What the chief read; ignored in the other ranks.
        backend: Copies the chief's arrays to the other ranks.
    """
    shared = _from_chief(arrays, backend)
    text = shared.get(f"{CALLBACKS}description")
    description = parse_json(text.astype(np.uint8).tobytes()) if text is not None else {}
    for index, callback in callbacks:
        entry = description.get(str(index))
        if entry is None:
            _report_stateless(callback)
        elif entry["type"] != _name(callback):
            log.warning(
                "warning: the checkpoint has the state of %s, where now %s is; it starts anew",
                entry["type"],
                _name(callback),
            )
        else:
            state = dict(entry["plain"])
            for name, stored in entry["arrays"].items():
                parts = [shared[key] for key in stored["keys"]]
                state[name] = parts if stored["is_list"] else parts[0]
            _restore(callback, state)


def _state_of(callback: keras.callbacks.Callback) -> Mapping[str, Any] | None:
    if hasattr(callback, "state_dict"):
        state: Mapping[str, Any] = callback.state_dict()
        return state
    for kind, names in _ATTRIBUTES.items():
        if isinstance(callback, kind):
            return {name: getattr(callback, name, None) for name in names}
    return None


def _restore(callback: keras.callbacks.Callback, state: Mapping[str, Any]) -> None:
    if hasattr(callback, "load_state_dict"):
        callback.load_state_dict(state)
        return
    for name, value in state.items():
        setattr(callback, name, value)


def _report_stateless(callback: keras.callbacks.Callback) -> None:
    if not type(callback).__module__.startswith("keras."):
        log.warning(
            "warning: %s starts anew after the interruption, as it has no state_dict() and "
            "load_state_dict(state)",
            _name(callback),
        )


def _name(callback: keras.callbacks.Callback) -> str:
    return f"{type(callback).__module__}:{type(callback).__qualname__}"


def _arrays_in(value: Any) -> list[np.ndarray] | None:
    """Returns the arrays of an array or of a list of arrays, None for any other value."""
    if isinstance(value, np.ndarray):
        return [value]
    are_arrays = isinstance(value, list | tuple) and all(isinstance(v, np.ndarray) for v in value)
    return list(value) if are_arrays and value else None


def _from_chief(arrays: Mapping[str, np.ndarray], backend: Backend) -> dict[str, np.ndarray]:
    """Returns the chief's arrays in every process."""
    layout = {name: [list(a.shape), a.dtype.name] for name, a in arrays.items()}
    found: dict[str, np.ndarray] = {}
    for name, (shape, dtype) in backend.broadcast_object(layout).items():
        values = arrays[name] if backend.is_chief else np.zeros(shape)
        found[name] = backend.broadcast(values.astype(np.float64)).reshape(shape).astype(dtype)
    return found
