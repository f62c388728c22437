"""Checks of the values of a section; a wrong one is a `UsageError` that names its key."""

import dataclasses
import math
import re
from typing import Any

from distcnn.errors import UsageError


def require(condition: bool, message: str) -> None:
    """Raises a `UsageError` with a message if a condition is false."""
    if not condition:
        raise UsageError(message)


def require_at_least(section: str, instance: object, minimum: float, *names: str) -> None:
    """Checks fields that are set against a lower bound, which they may equal."""
    for name in names:
        value = getattr(instance, name)
        if value is not None:
            expected = f"at least {minimum:g}"
            require(value >= minimum, f"{section}.{name} is {value}; expected {expected}")


def require_at_most(section: str, instance: object, maximum: int, *names: str) -> None:
    """Checks fields that are set against an upper bound, which they may equal."""
    for name in names:
        value = getattr(instance, name)
        if value is not None:
            require(value <= maximum, f"{section}.{name} is {value}; expected at most {maximum}")


def require_finite(section: str, instance: Any) -> None:
    """Refuses NaN and infinity, which comparisons with bounds let pass."""
    for each in dataclasses.fields(instance):
        value = getattr(instance, each.name)
        values = value if isinstance(value, list) else [value]
        for number in values:
            finite = not isinstance(number, float) or math.isfinite(number)
            require(finite, f"{section}.{each.name} is {value}; expected a finite number")


def require_fraction(section: str, instance: object, *names: str) -> None:
    """Checks that fields are at least 0 and less than 1."""
    for name in names:
        value = getattr(instance, name)
        require(0 <= value < 1, f"{section}.{name} is {value}; expected 0 <= value < 1")


def require_import_path(key: str, value: str | None) -> None:
    """Checks the form of a function's name, if there is one.

    Raises:
        UsageError: If it is not of the form package.module:function.
    """
    pattern = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*"
    require(
        value is None or re.fullmatch(pattern, value) is not None,
        f"{key} is {value!r}; expected package.module:function",
    )
