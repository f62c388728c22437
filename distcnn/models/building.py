"""From the configuration to an uncompiled classifier."""

import inspect
import json
import logging
from collections.abc import Callable
from typing import Any

import keras

from distcnn.config import ModelConfig
from distcnn.config.lookup import import_object, look_up
from distcnn.config.recipe import nearest
from distcnn.errors import DistcnnError, UsageError
from distcnn.models.catalog import MODELS
from distcnn.models.customised import require_plain_training

log = logging.getLogger("distcnn")


def build_model(
    config: ModelConfig, input_shape: tuple[int, int, int], num_classes: int
) -> keras.Model:
    """Builds the classifier that the configuration names.

    Args:
        config: Names a built-in model, or the function that returns the user's own.
        input_shape: `(height, width, channels)` of the images on offer. A user's function need not
            take it; the images are then resized to the input that its model has.
        num_classes: Number of classes of the data.

    Returns:
        A built model with an input of rank 4 and an output of shape `(batch, num_classes)`.

    Raises:
        UsageError: If the function cannot be found or does not take `config.args`.
        DistcnnError: If what it returns is not such a model.
    """
    name = config.factory or config.name
    function: Callable[..., Any] = (
        import_object(config.factory, "model.factory")
        if config.factory
        else look_up("model.name", config.name, MODELS)
    )
    offered = {"input_shape": input_shape, "num_classes": num_classes}
    parameters = inspect.signature(function).parameters
    takes_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    for key in config.args:
        if key not in parameters and not takes_any:
            hint = nearest(key, parameters)
            raise UsageError(f"model.args has {key!r}, which {name} does not take{hint}")
    arguments = {k: v for k, v in offered.items() if k in parameters or takes_any} | config.args
    model = function(**arguments)
    _check(name, model, num_classes)
    require_plain_training(name, model)
    _check_saving(name, model)
    return model


def takes_images(input_shape: Any) -> bool:
    """Tells whether a model's input is one image of fixed size, grey or colour."""
    return (
        isinstance(input_shape, tuple)
        and len(input_shape) == 4
        and None not in input_shape[1:]
        and input_shape[3] in (1, 3)
    )


def _check_saving(name: str, model: keras.Model) -> None:
    """Finds out before the training, not after it, whether the model can be saved and loaded."""
    try:
        description = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DistcnnError(f"{name} returned a model that Keras cannot save: {reason}") from None
    if '"__lambda__"' in description:
        log.warning(
            "warning: %s has a Lambda layer with a Python lambda, which Keras saves but refuses to "
            "load; give the layer a function of its own or write a keras.Layer",
            name,
        )


def _check(name: str, model: object, num_classes: int) -> None:
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise DistcnnError(f"{name} returned a {kind}; expected a keras.Model")
    if not model.built:
        raise DistcnnError(
            f"{name} returned a model that is not built; begin it with keras.Input(input_shape)"
        )
    shape = getattr(model, "input_shape", None)
    if shape is None:
        raise DistcnnError(
            f"{name} returned a model that does not know its input shape; return it as "
            "keras.Model(inputs, model(inputs)) with inputs = keras.Input(input_shape)"
        )
    if not takes_images(shape):
        raise DistcnnError(
            f"{name} has the input shape {shape}; expected one image input (None, "
            "height, width, channels) with fixed sizes and 1 (grey) or 3 (colour) channels"
        )
    if model.output_shape != (None, num_classes):
        raise DistcnnError(
            f"{name} has the output shape {model.output_shape}; expected (None, {num_classes}), as "
            f"the data has {num_classes} classes"
        )
