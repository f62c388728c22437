"""Builds the classifier from the configuration."""

import inspect
import json
import logging
from collections.abc import Callable, Mapping
from typing import Any

import keras

from distcnn.config import ModelConfig
from distcnn.config.lookup import import_object, look_up
from distcnn.config.recipe import nearest
from distcnn.errors import DistcnnError, UsageError
from distcnn.models.catalog import APPLICATIONS, MODELS
from distcnn.models.head import SOFTMAX, Head
from distcnn.runtime.keras_internals import functional_graph, output_structure

log = logging.getLogger("distcnn")


def build_model(
    config: ModelConfig,
    input_shape: tuple[int, int, int],
    num_classes: int,
    head: Head = SOFTMAX,
) -> keras.Model:
    """Builds the configured classifier.

    Args:
        config: The built-in model, or the function that returns the user's own.
        input_shape: `(height, width, channels)` of the data set's images. A user's function may
            omit this parameter; the images are then resized to the input of its model.
        num_classes: Number of classes in the data set, or of the numbers that its labels are.
        head: How the model ends. Other than softmax, it is offered to the function as
            `classifier_activation`; a function that takes it may return numbers around 0 for
            labels in any unit.

    Returns:
        A built model with a rank-4 input and an output of shape `(batch, num_classes)`.

    Raises:
        UsageError: If the function cannot be found or does not accept `config.args`.
        DistcnnError: If the function does not return such a model.
    """
    name = config.factory or config.name
    function: Callable[..., Any] = (
        import_object(config.factory, "model.factory")
        if config.factory
        else look_up("model.name", config.name, MODELS)
    )
    offered: dict[str, Any] = {"input_shape": input_shape, "num_classes": num_classes}
    if head.activation != "softmax":
        offered["classifier_activation"] = head.activation
    parameters = inspect.signature(function).parameters
    accepts_any = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if config.weights != "none":
        if config.factory is not None or config.name not in APPLICATIONS:
            raise UsageError(
                f"model.weights is {config.weights}, but {name} has no pretrained weights that "
                "distcnn knows; give a network of keras.applications as --model.name, or load them "
                "in your function"
            )
        offered["weights"] = config.weights
    for key in config.args:
        if key not in parameters and not accepts_any:
            hint = nearest(key, parameters)
            raise UsageError(f"model.args has {key!r}, which {name} does not accept{hint}")
    arguments = {k: v for k, v in offered.items() if k in parameters or accepts_any} | config.args
    model = function(**arguments)
    _check(name, model, num_classes)
    if "classifier_activation" in arguments:
        model = head.rescaled(model)
    _check_saving(name, model)
    return model


def takes_images(input_shape: Any) -> bool:
    """Returns whether a model takes one image of fixed size, grey or colour."""
    return (
        isinstance(input_shape, tuple)
        and len(input_shape) == 4
        and None not in input_shape[1:]
        and input_shape[3] in (1, 3)
    )


def _check_saving(name: str, model: keras.Model) -> None:
    """Fails before training, not after it, if Keras cannot save the model.

    A model that can be saved but not loaded is only warned about.
    """
    try:
        description = json.dumps(keras.saving.serialize_keras_object(model))
    except (NotImplementedError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise DistcnnError(f"{name} returned a model that Keras cannot save: {reason}") from None
    if '"__lambda__"' in description:
        log.warning(
            "warning: %s has a Lambda layer with a Python lambda, which Keras saves but refuses to "
            "load; use a named function, or write a keras.Layer",
            name,
        )


def _check(name: str, model: object, num_classes: int) -> None:
    if not isinstance(model, keras.Model):
        kind = type(model).__name__
        raise DistcnnError(f"{name} returned a {kind}; expected a keras.Model")
    of_keras_hub = any(base.__module__.startswith("keras_hub.") for base in type(model).__mro__)
    if of_keras_hub and getattr(model, "preprocessor", None) is not None:
        raise DistcnnError(
            f"{name} returned a model of KerasHub with a preprocessor, which only its own fit and "
            "predict call; return a keras.Model of its backbone behind keras.layers.Rescaling with "
            "the scale and offset of the preprocessor's image_converter, as the page on "
            "fine-tuning shows, or build it with preprocessor=None"
        )
    if not model.built:
        raise DistcnnError(
            f"{name} returned a model that is not built; start it with keras.Input(input_shape)"
        )
    shape = getattr(model, "input_shape", None)
    if shape is None:
        raise DistcnnError(
            f"{name} returned a model without an input shape; return it as "
            "keras.Model(inputs, model(inputs)) with inputs = keras.Input(input_shape)"
        )
    if not takes_images(shape):
        raise DistcnnError(
            f"{name} has the input shape {shape}; expected one image input (None, "
            "height, width, channels) with fixed sizes and 1 (grey) or 3 (colour) channels"
        )
    graph = functional_graph(model)
    if graph is not None and isinstance(output_structure(graph), Mapping):
        keys = ", ".join(map(str, output_structure(graph)))
        raise DistcnnError(
            f"{name} returns a dictionary with {keys}; expected a single tensor of shape "
            f"(None, {num_classes}), as from keras.Model(inputs, outputs)"
        )
    if model.output_shape != (None, num_classes):
        raise DistcnnError(
            f"{name} has the output shape {model.output_shape}; expected (None, {num_classes}), "
            f"because the data has {num_classes} classes, or numbers for each image"
        )
