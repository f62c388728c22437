"""Keras' callbacks that write or send: rank 0 does, and the other ranks only take part."""

import os
import tempfile
from typing import Any

import keras

from distcnn.distribute.base import Backend
from distcnn.runtime.keras_fit import save_weights_of_backup
from distcnn.runtime.keras_hooks import (
    BACKUP_END,
    BACKUP_SAVE,
    CSV_BEGIN,
    EVENT_FILE,
    MONITOR_EPOCH,
    TENSORBOARD_MODEL,
    FunctionMaker,
    Hooks,
)


def install_callback_hooks(hooks: Hooks, backend: Backend) -> None:
    """Makes Keras' callbacks, and TensorFlow's summaries, write nothing in ranks other than 0.

    The callbacks themselves run on every rank: a subclass may compute something on all of them.

    Args:
        hooks: Where to install.
        backend: Knows the rank.
    """
    if backend.is_chief:
        return
    elsewhere = tempfile.TemporaryDirectory()  # removed at the end of the process
    hooks.replace(CSV_BEGIN, _with_attribute("filename", os.devnull))
    hooks.replace(TENSORBOARD_MODEL, _with_attribute("log_dir", elsewhere.name))
    hooks.replace(EVENT_FILE, _writing_in(elsewhere))
    hooks.replace(MONITOR_EPOCH, lambda original: _nothing)
    hooks.replace(BACKUP_SAVE, lambda original: save_weights_of_backup)
    hooks.replace(BACKUP_END, lambda original: _nothing)


def _with_attribute(name: str, value: str) -> FunctionMaker:
    """Gives a callback's attribute another value while one of its methods runs."""

    def make(original: Any) -> Any:
        def method(callback: keras.callbacks.Callback, *arguments: Any, **keywords: Any) -> Any:
            kept = getattr(callback, name)
            setattr(callback, name, value)
            try:
                return original(callback, *arguments, **keywords)
            finally:
                setattr(callback, name, kept)

        return method

    return make


def _writing_in(folder: Any) -> FunctionMaker:
    def make(original: Any) -> Any:
        def create(*arguments: Any, **keywords: Any) -> Any:
            return original(*arguments, **{**keywords, "logdir": folder.name})

        return create

    return make


def _nothing(*arguments: Any, **keywords: Any) -> None:
    """Does nothing."""
