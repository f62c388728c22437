"""The user's own classes and functions that Keras needs in order to load a model."""

import inspect
import sys
from collections.abc import Collection, Iterator
from types import ModuleType
from typing import Any

import keras

from distcnn.config.lookup import import_object

_LIBRARIES = {"keras", "tensorflow", "numpy", "distcnn", *sys.stdlib_module_names}
"""Top-level packages whose modules hold nothing of the user's own."""

_ROOMS = (keras.initializers, keras.regularizers, keras.constraints)
"""Modules of Keras whose classes are found by their bare name."""


def own_objects(factory: str, names: Collection[str]) -> dict[str, Any]:
    """Imports the module of a factory and returns what Keras may look up there.

    These are classes and functions that the module defines or imports, and those of the modules
    that it takes them from, under the names that Keras gives them in a file. Names that Keras
    knows itself are left to it, unless the user's code defines them.

    Args:
        factory: The function that builds the model, as `package.module:name`.
        names: The names in question: all strings of the model's configuration.

    Returns:
        The objects by name. What is registered with Keras is registered by the import.

    Raises:
        UsageError: If the module or the function does not exist.
    """
    function = import_object(factory, "model.factory")
    modules = [sys.modules[factory.partition(":")[0]]]
    modules += [m for m in (sys.modules.get(getattr(function, "__module__", "")),) if m]
    found: dict[str, Any] = {}
    for module in _with_imported(modules):
        for key, value in list(vars(module).items()):
            if not (inspect.isclass(value) or inspect.isroutine(value)) or value is function:
                continue
            for name in {key, getattr(value, "__name__", key)} & set(names):
                if not _keras_knows(name, value):
                    found.setdefault(name, value)
    return found


def strings_in(config: Any) -> Iterator[str]:
    """Yields every string of a nested configuration, keys aside."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        for value in config.values():
            yield from strings_in(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from strings_in(value)


def needs_own_code(config: Any) -> bool:
    """Tells whether a model's configuration names classes or functions that are not Keras' own."""
    if isinstance(config, list | tuple):
        return any(map(needs_own_code, config))
    if not isinstance(config, dict):
        return False
    kind, module = config.get("class_name"), config.get("module")
    if kind in ("function", "__lambda__"):
        return True
    is_object = isinstance(kind, str) and "registered_name" in config
    if is_object and _top_level(module or "") != "keras":
        return True
    return any(map(needs_own_code, config.values()))


def named_like_keras(config: Any) -> Iterator[str]:
    """Yields the names of own classes in a model's configuration that Keras uses for others."""
    if isinstance(config, list | tuple):
        for value in config:
            yield from named_like_keras(value)
    elif isinstance(config, dict):
        kind = config.get("class_name")
        is_own = isinstance(kind, str) and config.get("registered_name") == kind != "function"
        if is_own and any(hasattr(room, str(kind)) for room in _ROOMS):
            yield str(kind)
        yield from named_like_keras(list(config.values()))


def _with_imported(modules: list[ModuleType]) -> Iterator[ModuleType]:
    """Yields modules and, nearest first, those of the user's that they import something from."""
    queue, seen = list(modules), set()
    while queue:
        module = queue.pop(0)
        name = module.__name__
        if name in seen:
            continue
        seen.add(name)
        yield module
        for value in list(vars(module).values()):
            origin = value if isinstance(value, ModuleType) else None
            if inspect.isclass(value) or inspect.isroutine(value):
                origin = sys.modules.get(getattr(value, "__module__", None) or "")
            if origin is not None and _top_level(origin.__name__) not in _LIBRARIES:
                queue.append(origin)


def _keras_knows(name: str, value: Any) -> bool:
    """Tells whether an object of a library has a name under which Keras finds its own."""
    if _top_level(getattr(value, "__module__", None) or "") not in _LIBRARIES:
        return False
    return any(hasattr(room, name) for room in (*_ROOMS, keras.activations, keras.layers, keras))


def _top_level(module: str) -> str:
    return module.partition(".")[0]
