"""The optimizers of a model."""

from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import all_layers


def optimizers_of(model: keras.Model) -> list[keras.optimizers.Optimizer]:
    """Returns the optimizers that a model or a part of it holds as attributes."""
    found: dict[int, keras.optimizers.Optimizer] = {}
    for layer in (model, *all_layers(model)):
        for value in list(vars(layer).values()):
            members = value.values() if isinstance(value, dict) else value
            for member in members if isinstance(members, list | tuple) else [value]:
                if isinstance(member, keras.optimizers.Optimizer):
                    found[id(member)] = member
    return list(found.values())


def require_supported(optimizer: Any, backend: Backend) -> None:
    """Checks that an optimizer works under the strategy.

    Raises:
        UsageError: If it accumulates gradients under a strategy of TensorFlow.
    """
    if getattr(optimizer, "gradient_accumulation_steps", None) and tf.distribute.has_strategy():
        raise UsageError(
            f"the optimizer accumulates gradients, which Keras does not support under "
            f"{backend.name}; use horovod, or drop gradient_accumulation_steps"
        )
