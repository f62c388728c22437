"""What a model's owner has compiled it with, and what its loss takes as labels."""

from typing import Any, Literal

import keras

from distcnn.config import Config
from distcnn.errors import UsageError

Labels = Literal["one_hot", "index"]
"""How a loss takes the class of an image: as a row of the one-hot matrix, or as its index."""


def is_compiled_by_owner(model: keras.Model) -> bool:
    """Returns whether a model was compiled before distcnn got it."""
    return bool(model.compiled)


def label_format(model: keras.Model, config: Config) -> Labels:
    """Returns what the loss of a compiled model takes as labels.

    Losses whose name begins with `sparse`, as those of Keras, take indices; all others take one-hot
    rows. `model.labels` overrides that.

    Args:
        model: The compiled model.
        config: The run.

    Raises:
        UsageError: If the loss takes indices, but the augmentation mixes labels.
    """
    if config.model.labels != "auto":
        found: Labels = config.model.labels
    else:
        found = "index" if _name_of(model.loss).lower().startswith("sparse") else "one_hot"
    augment = config.data.augment
    mixing = [key for key in ("mixup", "cutmix", "label_smoothing") if getattr(augment, key)]
    if found == "index" and mixing:
        raise UsageError(
            f"data.augment.{mixing[0]} mixes the labels of images, but the model's loss "
            f"{_name_of(model.loss)} takes the index of one class; switch that augmentation off, "
            "or compile the model with a loss for one-hot labels"
        )
    return found


def _name_of(loss: Any) -> str:
    if isinstance(loss, str):
        return loss
    return getattr(loss, "__name__", None) or type(loss).__name__
