"""The settings that a search varies, read from a YAML file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from distcnn.config.recipe import config_keys, nearest
from distcnn.config.safe_yaml import read_yaml
from distcnn.errors import UsageError

_RANGE_KEYS = {"low", "high", "log", "step"}
_FIXED = ("recipe", "out")
_OF_MODEL = "model.args."


class Suggesting(Protocol):
    """What a range or a choice asks for a value: a trial of Optuna."""

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Returns one of some values."""

    def suggest_int(self, name: str, low: int, high: int, *, step: int, log: bool) -> int:
        """Returns a whole number."""

    def suggest_float(
        self, name: str, low: float, high: float, *, step: float | None, log: bool
    ) -> float:
        """Returns a number."""


@dataclass(frozen=True)
class Choice:
    """One of some values: numbers, texts, true and false, or null."""

    values: tuple[Any, ...]

    @property
    def samples(self) -> tuple[Any, ...]:
        """Values that a configuration must accept."""
        return self.values

    def suggest(self, trial: Suggesting, key: str) -> Any:
        """Asks for a value."""
        return trial.suggest_categorical(key, list(self.values))


@dataclass(frozen=True)
class Range:
    """A number between two bounds, which are included; a whole one if the bounds and the step are.

    Attributes:
        low: The least value.
        high: The greatest value.
        log: Whether the logarithm is uniform rather than the value.
        step: Distance of the values; None for any, or 1 for whole numbers.
    """

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def samples(self) -> tuple[float, float]:
        """Values that a configuration must accept."""
        return self.low, self.high

    def suggest(self, trial: Suggesting, key: str) -> Any:
        """Asks for a value."""
        step = 1 if self.step is None else self.step
        if isinstance(self.low, int) and isinstance(self.high, int) and isinstance(step, int):
            return trial.suggest_int(key, self.low, self.high, step=step, log=self.log)
        return trial.suggest_float(key, self.low, self.high, step=self.step, log=self.log)


Space = dict[str, Choice | Range]
"""What is varied, by dotted key."""


def read_space(path: Path) -> Space:
    """Reads a search space.

    Its keys are those of the configuration, dotted or nested. A value is a list of choices, or a
    mapping with `low` and `high`, and maybe `log: true` or `step`.

    Raises:
        UsageError: If the file cannot be read, or a key or a value is wrong.
    """
    try:
        content = read_yaml(path)
    except OSError as error:
        raise UsageError(f"the space {path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UsageError(f"the space {path} is not valid YAML: {error}") from None
    if not isinstance(content, Mapping) or not content:
        raise UsageError(
            f"the space {path} contains no keys; expected lines like "
            "`optimizer.lr: {low: 0.001, high: 0.1, log: true}`"
        )
    space = {key: _parse(path, key, value) for key, value in _leaves(content).items()}
    known = {*config_keys(), "data.augment"} - set(_FIXED)
    for key in space:
        if key not in known and not key.startswith(_OF_MODEL):
            raise UsageError(f"{path}: {key} is no key that can be varied{nearest(key, known)}")
    return space


def _leaves(content: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and not (_RANGE_KEYS & set(value)):
            found |= _leaves(value, f"{key}.")
        else:
            found[key] = value
    return found


def _parse(path: Path, key: str, value: Any) -> Choice | Range:
    if isinstance(value, list):
        plain = all(isinstance(each, bool | int | float | str) or each is None for each in value)
        if value and plain:
            return Choice(tuple(value))
    if isinstance(value, Mapping) and {"low", "high"} <= set(value) <= _RANGE_KEYS:
        numbers = [value["low"], value["high"], value.get("step") or 1]
        is_flag = isinstance(value.get("log", False), bool)
        if is_flag and all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
            return _range(path, key, value)
    raise UsageError(
        f"{path}: {key} is {value!r}; expected a list of values, or {{low: A, high: B}} with "
        "numbers, and maybe log: true or step: S"
    )


def _range(path: Path, key: str, value: Mapping[str, Any]) -> Range:
    low, high, log, step = (value.get(name) for name in ("low", "high", "log", "step"))
    assert low is not None
    assert high is not None
    problem = ""
    if low > high:
        problem = f"low {low} is greater than high {high}"
    elif log and low <= 0:
        problem = f"low is {low}, but log: true needs it to be positive"
    elif log and step:
        problem = "log: true and step exclude each other"
    elif step is not None and step <= 0:
        problem = f"step is {step}; expected a positive number"
    if problem:
        raise UsageError(f"{path}: {key}: {problem}")
    return Range(low, high, bool(log), step)
