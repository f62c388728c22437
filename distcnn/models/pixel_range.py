"""The range of pixels that a model expects, found out from what it does with them first."""

import logging
from dataclasses import dataclass
from typing import Any, Literal

import keras
import numpy as np

from distcnn.data.pixels import PixelRange, made_up_images, scale_pixels
from distcnn.runtime.keras_internals import calls_in_order, functional_graph, in_evaluation

log = logging.getLogger("distcnn")

_LEAST_SPREAD = 0.25
"""A smaller range of values at the first layer with weights means pixels were scaled twice."""

_SIGNED = (
    *("inception_v3", "inception_resnet_v2", "mobilenet_", "mobilenetv2_", "xception", "nasnet"),
    *("resnet50v2", "resnet101v2", "resnet152v2", "MobileNetV3", "efficientnetv2"),
)
"""Beginnings of the names of the keras.applications models that take [-1, 1]."""

_CAFFE = ("resnet50", "resnet101", "resnet152", "vgg16", "vgg19")
"""keras.applications models that take BGR pixels less ImageNet's mean, which no range gives."""


@dataclass(frozen=True)
class _Entry:
    """What reaches the first layer with weights.

    Attributes:
        values: Its input; None if the model cannot be seen into.
        model: Name of the innermost model that the layer belongs to.
    """

    values: np.ndarray | None
    model: str


def resolve_pixels(
    model: keras.Model, configured: Literal["auto", "unit", "signed", "byte"] = "auto"
) -> tuple[PixelRange, str]:
    """Returns the range in which pixels are given to a model, and why.

    A few made-up images go through the layers before the first one with weights. If the pixels of
    [0, 1] become nearly constant there, the model scales them by itself, and the range is the one
    that gives them contrast. A model of keras.applications that does not scale gets its own range.

    Args:
        model: A built classifier.
        configured: The user's choice, which wins; a contradiction is warned of. `auto`: decide.
    """
    found, reason = _expected(model)
    if configured == "auto":
        return found or "unit", reason
    if found is not None and found != configured:
        log.warning(
            "warning: data.pixels is %s, but %s is expected (%s); it may learn little; use "
            "--data.pixels auto",
            configured,
            found,
            reason,
        )
    return configured, "as configured"


def _expected(model: keras.Model) -> tuple[PixelRange | None, str]:
    """Returns the range that a model shows it expects, or None, and the reason."""
    shape = model.input_shape[1:]
    entries = {name: _entry(model, _images(shape, name)) for name in _ORDER}
    values = {name: entry.values for name, entry in entries.items()}
    signed = values["signed"]
    if signed is None or np.allclose((signed.min(), signed.max()), (-1, 1), atol=0.02):
        return _of_application(entries["unit"].model)
    suited = [name for name in _ORDER if _has_contrast(values[name])]
    if not suited or _same(values["unit"], values["byte"]):
        return None, "the default"
    return suited[0], "the model scales pixels by itself"


_ORDER: tuple[PixelRange, ...] = ("unit", "signed", "byte")


def _of_application(name: str) -> tuple[PixelRange | None, str]:
    if name.startswith(_SIGNED):
        return "signed", f"{name} of keras.applications takes [-1, 1]"
    if name in _CAFFE:
        return None, f"the default; weights of ImageNet need {name}'s preprocess_input inside"
    return None, "the default"


def _images(shape: Any, pixels: PixelRange) -> np.ndarray:
    return np.asarray(scale_pixels(made_up_images(shape), pixels))


def _entry(model: keras.Model, images: Any) -> _Entry:
    """Follows images through a model as far as the input of its first layer with weights."""
    graph = functional_graph(model)
    if graph is None:
        return _Entry(None, model.name)
    known: dict[int, Any] = {id(graph.inputs[0]): images}
    for call in calls_in_order(graph):
        if not all(id(tensor) in known for tensor in call.input_tensors):
            continue
        operation = call.operation
        first = known[id(call.input_tensors[0])] if call.input_tensors else None
        if isinstance(operation, keras.Model) and operation.weights:
            inner = _entry(operation, first)
            return inner if inner.values is not None else _Entry(np.asarray(first), operation.name)
        if _has_weights(operation):
            return _Entry(np.asarray(first), model.name)
        if isinstance(operation, keras.layers.ZeroPadding2D):
            known[id(call.outputs[0])] = first  # the zeros are no pixels
            continue
        arguments, keywords = call.arguments.fill_in(known)
        keywords |= in_evaluation(operation)
        results = keras.tree.flatten(operation(*arguments, **keywords))
        known.update(zip(map(id, call.outputs), results, strict=True))
    return _Entry(None, model.name)


def _has_weights(operation: Any) -> bool:
    if isinstance(operation, keras.layers.Normalization):
        return False
    return bool(getattr(operation, "weights", ()))


def _has_contrast(values: np.ndarray | None) -> bool:
    """Tells whether values vary, and vary more than they lie away from zero."""
    if values is None or not np.isfinite(values).all():
        return False
    by_channel = values.reshape(-1, values.shape[-1]).astype(np.float64)
    low, high = by_channel.min(axis=0), by_channel.max(axis=0)
    spread = float(np.median(high - low))
    return spread >= _LEAST_SPREAD and float(np.median(np.abs(high + low) / 2)) <= spread


def _same(a: np.ndarray | None, b: np.ndarray | None) -> bool:
    if a is None or b is None or a.size != b.size:
        return False
    return bool(np.allclose(a, b, rtol=0.01, atol=1e-3))
