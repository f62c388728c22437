"""CUDA's libraries that pip has installed, where TensorFlow does not look for all of them."""

import contextlib
import ctypes
import importlib.util
from pathlib import Path

_MISSED = ("cusolver",)
"""Packages whose folder is not on the search path of the library of TensorFlow 2.21 that opens them
(the `RUNPATH` of `libtensorflow_framework.so.2`). It then uses no GPU at all."""


def load_missed_libraries() -> list[Path]:
    """Loads what TensorFlow would not find; call it before TensorFlow looks for GPUs.

    A library that is already loaded is found by its name, wherever it is.

    Returns:
        The files that were loaded; none without pip's packages of CUDA.
    """
    loaded = []
    for file in _files():
        with contextlib.suppress(OSError):  # TensorFlow then says that it uses no GPU
            ctypes.CDLL(str(file))
            loaded.append(file)
    return loaded


def _files() -> list[Path]:
    spec = importlib.util.find_spec("nvidia")
    folders = spec.submodule_search_locations if spec else None
    return [
        file
        for folder in folders or ()
        for package in _MISSED
        for file in sorted(Path(folder, package, "lib").glob(f"lib{package}.so.*"))
    ]
