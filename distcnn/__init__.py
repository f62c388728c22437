"""Trains Keras 3 image classifiers on anything from a laptop to a cluster.

From Python: build a `Config`, give it and your Keras callbacks to a `Trainer`, call `fit`.
"""

from typing import TYPE_CHECKING, Any

from distcnn.config import Config
from distcnn.version import __version__

if TYPE_CHECKING:
    from distcnn.training.trainer import Trainer

__all__ = ["Config", "Trainer", "__version__"]


def __getattr__(name: str) -> Any:
    """Imports the trainer, and TensorFlow with it, only when it is asked for."""
    if name == "Trainer":
        from distcnn.training.trainer import Trainer

        return Trainer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
