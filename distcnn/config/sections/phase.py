"""The phases of a run, `train.phases`."""

import contextlib
import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

from distcnn.config.sections.bounds import require

_LAST = re.compile(r"last ([1-9]\d*)")


@dataclass(frozen=True, kw_only=True)
class Phase:
    """Some epochs of a run in which some of the layers are trained.

    Attributes:
        train: `head`, the last layer with weights; `last N`, that many of the last layers, as
            `distcnn.models.depth.layers_by_depth` counts them; or `all`.
        epochs: Passes over the training images.
        learning_rate: Takes the place of `optimizer.lr`, if it is given.
        freeze_batchnorm: Whether batch normalisation stays frozen in the layers that are trained.
    """

    epochs: int
    train: str = "all"
    learning_rate: float | None = None
    freeze_batchnorm: bool = False

    @classmethod
    def of(cls, values: Any) -> Self:
        """Builds a phase from its mapping in a configuration.

        Raises:
            UsageError: If a key is missing or unknown, or a value is wrong.
        """
        keys = [field.name for field in dataclasses.fields(cls)]
        example = "such as {train: head, epochs: 3, learning_rate: 0.001}"
        require(
            isinstance(values, Mapping),
            f"train.phases has {values!r}; expected a mapping {example}",
        )
        for key in values:
            expected = f"expected {', '.join(keys)}"
            require(key in keys, f"train.phases has the key {key!r} in {dict(values)}; {expected}")
        require(
            "epochs" in values, f"train.phases has no epochs in {dict(values)}; expected {example}"
        )
        return cls(**{**values, "learning_rate": _number(values.get("learning_rate"))})

    def __post_init__(self) -> None:
        """Validates the values."""
        require(
            type(self.epochs) is int and self.epochs > 0,
            f"train.phases has {self.epochs!r} epochs; expected a whole number of at least 1",
        )
        require(
            type(self.freeze_batchnorm) is bool,
            f"train.phases has freeze_batchnorm {self.freeze_batchnorm!r}; expected true or false",
        )
        require(
            self.train in ("head", "all") or _LAST.fullmatch(str(self.train)) is not None,
            f"train.phases trains {self.train!r}; expected head, all, or last N with a number of "
            "layers, as in 'last 3'",
        )
        require(
            self.learning_rate is None
            or (type(self.learning_rate) in (int, float) and 0 < self.learning_rate < math.inf),
            f"train.phases has learning_rate {self.learning_rate!r}; expected a number above 0",
        )

    @property
    def layers(self) -> int | None:
        """How many of the last layers are trained; None for all."""
        if self.train == "all":
            return None
        last = _LAST.fullmatch(self.train)
        return int(last[1]) if last else 1


def _number(value: Any) -> Any:
    """Returns the number in a text such as 1e-4, which YAML 1.1 does not take for a number."""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return float(value)
    return value
