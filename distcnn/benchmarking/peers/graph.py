"""The operations of a model in plain values, from which other frameworks rebuild it."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Node:
    """One operation. Node number 0 is the input, images in NHWC; the first of a list is number 1.

    Attributes:
        kind: Name of the operation.
        inputs: Numbers of the nodes whose outputs it takes.
        settings: Its settings, which JSON can hold.
        layer: Name of the Keras layer whose weights it has; empty if it has none.
    """

    kind: str
    inputs: tuple[int, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    layer: str = ""
