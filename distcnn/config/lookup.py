"""Choosing something by its name from a plain dict.

Each room keeps a dict of what it offers. A value is the object itself, or its import path as
`package.module:name`, so that the dict can be read (for `--help`, for a usage error) without
importing TensorFlow.
"""

import importlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distcnn.config.recipe import nearest
from distcnn.errors import UsageError


def require_known(key: str, name: str, known: Collection[str]) -> None:
    """Checks a name against those on offer.

    Args:
        key: Dotted key of the configuration, for the message.
        name: The name that was given.
        known: The names on offer.

    Raises:
        UsageError: If it is none of them; the message names the nearest.
    """
    if name not in known:
        expected = f"expected one of {', '.join(known)}"
        raise UsageError(f"{key} is {name!r}; {expected}{nearest(name, known)}")


def look_up(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """Returns what a dict offers under a name, imported if need be.

    Args:
        key: Dotted key of the configuration, for the message.
        name: The name that was given.
        table: From names to objects or import paths.

    Raises:
        UsageError: If the name is not in the dict.
    """
    require_known(key, name, table)
    entry = table[name]
    return import_object(entry, key) if isinstance(entry, str) else entry


def import_object(path: str, key: str) -> Any:
    """Imports `package.module:name`; the working directory is searched too.

    Args:
        path: The import path.
        key: Dotted key of the configuration, for the message.

    Raises:
        UsageError: If the module or the name does not exist.
    """
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{key} is {path!r}, but there is no module {error.name!r}; expected a module that is "
            "installed or lies in the working directory"
        ) from None
    if not callable(getattr(module, name, None)):
        hint = nearest(name, [key for key in vars(module) if not key.startswith("_")])
        raise UsageError(f"{key} is {path!r}, but {module_name} has no function {name!r}{hint}")
    return getattr(module, name)
