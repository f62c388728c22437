"""Finds objects by name in plain dicts.

Each package registers its choices in a dict. A value is the object itself, or its import path as
`package.module:name`, so that `--help` and usage errors can list the names without importing
TensorFlow.
"""

import importlib
import sys
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from distcnn.config.recipe import nearest
from distcnn.errors import UsageError


def require_known(key: str, name: str, known: Collection[str]) -> None:
    """Checks that a name is registered.

    Args:
        key: Dotted key of the configuration, for the message.
        name: The name to check.
        known: The registered names.

    Raises:
        UsageError: If the name is not registered; the message suggests the nearest one.
    """
    if name not in known:
        expected = f"expected one of {', '.join(known)}"
        raise UsageError(f"{key} is {name!r}; {expected}{nearest(name, known)}")


def look_up(key: str, name: str, table: Mapping[str, Any]) -> Any:
    """Returns the object registered under a name, importing it if necessary.

    Args:
        key: Dotted key of the configuration, for the message.
        name: The registered name.
        table: Maps names to objects or import paths.

    Raises:
        UsageError: If the name is not registered.
    """
    require_known(key, name, table)
    entry = table[name]
    return import_object(entry, key) if isinstance(entry, str) else entry


def import_object(path: str, key: str) -> Any:
    """Imports a callable from an installed module or one in the working directory.

    Args:
        path: Import path, as `package.module:name`.
        key: Dotted key of the configuration, for the message.

    Raises:
        UsageError: If there is no such module, or it has no callable of that name.
    """
    module_name, _, name = path.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(
            f"{key} is {path!r}, but there is no module {error.name!r}; expected a module that is "
            "installed or in the working directory"
        ) from None
    if not callable(getattr(module, name, None)):
        hint = nearest(name, [key for key in vars(module) if not key.startswith("_")])
        raise UsageError(f"{key} is {path!r}, but {module_name} has no function {name!r}{hint}")
    return getattr(module, name)
