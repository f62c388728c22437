"""Rank 0 writes: saving a model and downloading a file happen once, while the others wait."""

import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.runtime.keras_hooks import (
    EXPORT,
    SAVE,
    SAVE_MODEL_FUNCTION,
    SAVE_WEIGHTS,
    SAVE_WEIGHTS_FUNCTION,
    FunctionMaker,
    Hooks,
)
from distcnn.scripting.downloads import install_download_hooks


def install_writing_hooks(
    hooks: Hooks, backend: Backend, synchronise: Callable[[keras.Model], None]
) -> None:
    """Makes rank 0 alone write models, and one process of each host download a file.

    Args:
        hooks: Where to install.
        backend: Tells the ranks, and lets them wait.
        synchronise: Makes a model the same on all replicas.
    """
    # The methods call the functions, which scripts may also call by themselves.
    points = (SAVE, SAVE_WEIGHTS, EXPORT, SAVE_MODEL_FUNCTION, SAVE_WEIGHTS_FUNCTION)
    writing = threading.local()
    for point in points:
        hooks.replace(point, _written_once(backend, synchronise, writing))
    install_download_hooks(hooks)


def _written_once(
    backend: Backend, synchronise: Callable[[keras.Model], None], writing: threading.local
) -> FunctionMaker:
    def make(original: Any) -> Any:
        def write(model: keras.Model, filepath: Any, *arguments: Any, **keywords: Any) -> Any:
            if getattr(writing, "active", False):
                return original(model, filepath, *arguments, **keywords)
            synchronise(model)
            writing.active = True
            try:
                if backend.is_chief:
                    return original(model, filepath, *arguments, **keywords)
                if tf.distribute.has_strategy():  # reading variables may take all processes
                    with tempfile.TemporaryDirectory() as folder:
                        other = Path(folder, Path(filepath).name)
                        return original(model, other, *arguments, **keywords)
                return None
            finally:
                writing.active = False
                backend.barrier()

        return write

    return make
