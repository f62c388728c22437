"""The state of a script's callbacks: the attributes that have changed since `fit` began.

A callback that has `state_dict()` and `load_state_dict(state)` decides by itself. Of any other one,
attributes are saved whose values are numbers, text, arrays, or lists and dictionaries of them.
Whatever else a callback holds is what the script gives it again.
"""

import csv
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np

from distcnn.scripting.plain_state import decode, digest, encode

log = logging.getLogger("distcnn")

_NOT_STATE = {"model", "_model", "params"}
"""Attributes that Keras sets in every callback."""

_OF_THE_PROCESS = {
    keras.callbacks.CSVLogger: {"append", "append_header", "file_flags"},
    # Its sign changes when the callback learns what it compares with, which is a function.
    keras.callbacks.EarlyStopping: {"min_delta"},
    keras.callbacks.ReduceLROnPlateau: {"min_delta"},
    keras.callbacks.ModelCheckpoint: {"min_delta"},
}
"""Attributes that belong to the process, by the type of the callback."""

Digests = list[dict[str, str | None]]
"""Hashes of the attributes of each callback."""


def digests(callbacks: Sequence[keras.callbacks.Callback]) -> Digests:
    """Returns the hashes by which changed attributes are recognised."""
    return [
        {name: digest(value) for name, value in _attributes(callback).items()}
        for callback in callbacks
    ]


def encode_callbacks(
    callbacks: Sequence[keras.callbacks.Callback], before: Digests, arrays: dict[str, np.ndarray]
) -> Any:
    """Returns the state of callbacks, as JSON can represent it.

    Args:
        callbacks: The callbacks.
        before: Their `digests` when `fit` began.
        arrays: Receives the arrays in the state.
    """
    return [
        {"type": _name(callback), "state": _state(callback, known, arrays)}
        for callback, known in zip(callbacks, before, strict=True)
    ]


def restore_callbacks(
    callbacks: Sequence[keras.callbacks.Callback],
    description: Any,
    arrays: Mapping[str, np.ndarray],
) -> None:
    """Gives callbacks the state that `encode_callbacks` has described."""
    for callback, entry in zip(callbacks, description, strict=False):
        if entry["type"] != _name(callback):
            log.warning(
                "warning: the checkpoint has the state of %s, where now %s is; it starts anew",
                entry["type"],
                _name(callback),
            )
            continue
        state = {name: decode(value, arrays) for name, value in entry["state"].items()}
        if hasattr(callback, "load_state_dict"):
            callback.load_state_dict(state)
            continue
        for name, value in state.items():
            _set(callback, name, value)


def go_on_writing(
    callbacks: Sequence[keras.callbacks.Callback], epoch: int, *, is_chief: bool
) -> None:
    """Makes loggers that write a file go on after the epochs that they have written.

    Args:
        callbacks: The callbacks, before `on_train_begin`.
        epoch: The first epoch that is still to be written.
        is_chief: Whether this process writes the files.
    """
    for callback in callbacks:
        if isinstance(callback, keras.callbacks.CSVLogger):
            callback.append = True
            path = Path(callback.filename)
            if not is_chief:
                callback.filename = os.devnull  # not the chief's rows once more
            elif path.is_file():
                _cut_rows(path, callback.sep, epoch)


def _cut_rows(path: Path, separator: str, epoch: int) -> None:
    """Removes the rows at the end of a file that belong to epochs which are computed again."""
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter=separator))
    kept = len(rows)
    while kept > 1 and not (rows[kept - 1][:1] or [""])[0].isdigit():
        kept -= 1
    while kept > 1 and rows[kept - 1][0].isdigit() and int(rows[kept - 1][0]) >= epoch:
        kept -= 1
    if kept < len(rows):
        with path.open("w", newline="") as file:
            csv.writer(file, delimiter=separator).writerows(rows[:kept])


def _attributes(callback: keras.callbacks.Callback) -> dict[str, Any]:
    left_out = set(_NOT_STATE)
    for kind, names in _OF_THE_PROCESS.items():
        if isinstance(callback, kind):
            left_out |= names
    return {name: value for name, value in vars(callback).items() if name not in left_out}


def _state(
    callback: keras.callbacks.Callback,
    known: Mapping[str, str | None],
    arrays: dict[str, np.ndarray],
) -> dict[str, Any]:
    if hasattr(callback, "state_dict"):
        return {name: encode(value, arrays) for name, value in callback.state_dict().items()}
    found: dict[str, Any] = {}
    for name, value in _attributes(callback).items():
        now = digest(value)
        if now is not None and now != known.get(name):
            found[name] = encode(value, arrays)
    return found


def _set(callback: keras.callbacks.Callback, name: str, value: Any) -> None:
    """Sets an attribute; lists and dictionaries stay the objects that the script may hold too."""
    current = getattr(callback, name, None)
    if type(current) is list and type(value) is list:
        current[:] = value
    elif type(current) is dict and type(value) is dict:
        current.clear()
        current.update(value)
    else:
        setattr(callback, name, value)


def _name(callback: keras.callbacks.Callback) -> str:
    return f"{type(callback).__module__}:{type(callback).__qualname__}"
