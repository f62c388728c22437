"""Refusing models whose own way of training would be ignored.

distcnn computes the step, the loss and the metrics itself. What a model's owner customised there
must not be dropped without a word.
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
"""Losses that equal distcnn's: the labels are the same, written as one-hot rows or as numbers."""


def require_plain_training(name: str, model: keras.Model) -> None:
    """Checks that distcnn trains a model as its owner meant it to be trained.

    Args:
        name: What returned the model, for the message.
        model: The classifier.

    Raises:
        DistcnnError: If the model overrides a method that defines its training, or is compiled with
            a loss other than categorical cross-entropy.
    """
    own = [m for m in _METHODS if getattr(type(model), m) is not getattr(keras.Model, m)]
    if own:
        raise DistcnnError(
            f"{name} returned a {type(model).__name__}, which overrides {', '.join(own)}; expected "
            "a model that Keras' own methods train, as distcnn would not call them; move what "
            "they do into layers, or train this model by its own script"
        )
    if not model.compiled:
        return
    if not _is_cross_entropy(getattr(model, "loss", None)):
        raise DistcnnError(
            f"{name} returned a model that is compiled with the loss {_name_of(model.loss)}; "
            "expected categorical cross-entropy, which distcnn trains with; return the model "
            "uncompiled, or train it by its own script"
        )
    log.warning(
        "warning: %s returned a compiled model; its optimizer and metrics are not used, but those "
        "of --optimizer.name and the accuracy",
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
