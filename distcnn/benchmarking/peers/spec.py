"""What is compared with whom: the peers, and the step that all of them compute."""

import importlib.util
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

from distcnn.benchmarking.peers.graph import Node
from distcnn.config import Config
from distcnn.errors import UsageError
from distcnn.runtime.files import parse_json

PLAIN = "plain"

PACKAGES = {PLAIN: "keras", "torch": "torch", "jax": "jax"}
"""The peers, and the package that each needs."""

FRAMEWORKS = tuple(name for name in PACKAGES if name != PLAIN)

_OPTIMIZERS = ("adam", "sgd")
PRECISIONS = ("float32", "mixed_bfloat16")
"""The policies that other frameworks are compared in."""


@dataclass(frozen=True, kw_only=True)
class PeerSpec:
    """The step that every side computes.

    Attributes:
        model: Name of the Keras model.
        parameters: Number of its parameters, moving statistics included.
        image_shape: Height, width and channels.
        classes: Number of classes.
        batch: Images of a step.
        precision: Dtype policy.
        optimizer: Name of the optimizer.
        learning_rate: Learning rate.
        momentum: Momentum of SGD.
        pixel_scale: What stored pixels are multiplied by.
        pixel_offset: What is added after that.
        gpu: Name of the GPU that the steps are computed on, or None for the CPU.
        tf32: Whether float32 products may use TensorFloat-32 on a GPU.
        nodes: The operations of the model.
        without_equivalent: Why other frameworks cannot compute the model; empty if they can.
    """

    model: str
    parameters: int
    image_shape: tuple[int, int, int]
    classes: int
    batch: int
    precision: str
    optimizer: str
    learning_rate: float
    momentum: float
    pixel_scale: float
    pixel_offset: float
    gpu: str | None = None
    tf32: bool = True
    nodes: tuple[Node, ...] = ()
    without_equivalent: str = ""

    def write(self, file: Path) -> None:
        """Writes the step as JSON."""
        file.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, file: Path) -> Self:
        """Reads what `write` wrote."""
        values = parse_json(file.read_text())
        values["image_shape"] = tuple(values["image_shape"])
        values["nodes"] = tuple(
            Node(**{**node, "inputs": tuple(node["inputs"])}) for node in values["nodes"]
        )
        return cls(**values)


def parse_peers(text: str | None) -> tuple[list[str], list[str]]:
    """Parses the value of `--compare`.

    Returns:
        The peers to compare with, and a line for each of `all` that is not installed.

    Raises:
        UsageError: If a name is unknown, or a peer that is named is not installed.
    """
    if text is None:
        return [], []
    names = [name.strip() for name in text.split(",")]
    everyone = names == ["all"]
    names = list(PACKAGES) if everyone else list(dict.fromkeys(names))
    unknown = [name for name in names if name not in PACKAGES]
    if unknown:
        raise UsageError(
            f"compare is {text!r}; expected a list of {', '.join(PACKAGES)}, or all of them: all"
        )
    missing = [name for name in names if not is_installed(name)]
    lines = [f"{name} is not installed: pip install {PACKAGES[name]}" for name in missing]
    if missing and not everyone:
        raise UsageError("; ".join(lines))
    return [name for name in names if name not in missing], lines


def is_installed(name: str) -> bool:
    """Returns whether the package of a peer is installed, without importing it."""
    return importlib.util.find_spec(PACKAGES[name]) is not None


def require_equivalent(config: Config, peers: Sequence[str]) -> None:
    """Checks that other frameworks can compute the step of a run.

    Args:
        config: Configuration of the run.
        peers: Names of the peers.

    Raises:
        UsageError: If they cannot; the message names the flag.
    """
    if not set(peers) & set(FRAMEWORKS):
        return
    train, optimizer = config.train, config.optimizer
    if optimizer.name not in _OPTIMIZERS:
        raise UsageError(
            f"optimizer.name is {optimizer.name}; other frameworks are compared with "
            f"{' or '.join(_OPTIMIZERS)}"
        )
    if config.precision.policy not in (*PRECISIONS, "auto"):
        raise UsageError(
            f"precision.policy is {config.precision.policy}; other frameworks are compared in "
            f"{' or '.join(PRECISIONS)}"
        )
    neutral = {
        "train.accumulation_steps": (train.accumulation_steps, 1),
        "optimizer.weight_decay": (optimizer.weight_decay, 0.0),
        "optimizer.clip_norm": (optimizer.clip_norm, 0.0),
        "optimizer.ema": (optimizer.ema, 0.0),
    }
    for key, (value, expected) in neutral.items():
        if value != expected:
            raise UsageError(
                f"{key} is {value}; other frameworks are compared without it; pass "
                f"--{key} {expected}"
            )
