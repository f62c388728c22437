"""Rejects models with customised training, which distcnn would otherwise silently ignore.

distcnn computes the training step, the loss and the metrics itself.
"""

import logging
from typing import Any

import keras

from distcnn.errors import DistcnnError

log = logging.getLogger("distcnn")

_METHODS = ("train_step", "test_step", "compute_loss", "compute_metrics")
"""Methods of `keras.Model` that define how it is trained and evaluated."""

_CROSS_ENTROPIES = (
    keras.losses.CategoricalCrossentropy,
    keras.losses.SparseCategoricalCrossentropy,
)
"""Losses equal to distcnn's; they differ only in the label format, one-hot or integer."""


def require_plain_training(name: str, model: keras.Model) -> None:
    """Checks that the model has no training behaviour of its own, which distcnn would not run.

    Args:
        name: The function or built-in model that returned it, for the message.
        model: The classifier.

    Raises:
        DistcnnError: If the model overrides a method that defines its training, or is compiled with
            a loss other than categorical cross-entropy.
    """
    overridden = [m for m in _METHODS if getattr(type(model), m) is not getattr(keras.Model, m)]
    if overridden:
        raise DistcnnError(
            f"{name} returned a {type(model).__name__}, which overrides "
            f"{', '.join(overridden)}; expected Keras' own methods, because distcnn trains without "
            "calling these; move their work into layers, or train the model with its own script"
        )
    if not model.compiled:
        return
    if not _is_cross_entropy(getattr(model, "loss", None)):
        raise DistcnnError(
            f"{name} returned a model compiled with the loss {_name_of(model.loss)}; "
            "expected categorical cross-entropy, the only loss distcnn trains with; return the "
            "model uncompiled, or train it with its own script"
        )
    log.warning(
        "warning: %s returned a compiled model; its optimizer and metrics are not used; "
        "--optimizer.name selects the optimizer, and the metric is accuracy",
        name,
    )


def _is_cross_entropy(loss: Any) -> bool:
    if loss is None:
        return True
    if isinstance(loss, str):
        loss = keras.losses.get(loss)
    functions = (
        keras.losses.categorical_crossentropy,
        keras.losses.sparse_categorical_crossentropy,
    )
    if loss in functions:
        return True
    if type(loss) not in _CROSS_ENTROPIES:
        return False
    settings = loss.get_config()
    smoothing = settings.get("label_smoothing", 0.0)
    return not smoothing and settings.get("reduction") == "sum_over_batch_size"


def _name_of(loss: Any) -> str:
    return loss if isinstance(loss, str) else getattr(loss, "__name__", type(loss).__name__)
