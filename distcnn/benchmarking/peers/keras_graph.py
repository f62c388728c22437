"""Describes a Keras model as a list of operations that other frameworks have too."""

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from distcnn.benchmarking.peers.graph import Node
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import all_layers, calls_in_order, functional_graph

ACTIVATIONS = (
    *("relu", "relu6", "gelu", "silu", "sigmoid", "hard_silu", "hard_sigmoid", "tanh"),
    "linear",
)
"""Activations that every framework has, by the names of Keras."""


def graph_of(model: keras.Model) -> list[Node]:
    """Describes a classifier up to its logits.

    Args:
        model: Built Sequential or functional model with one input and one output; a softmax at its
            end is left out.

    Returns:
        The operations in order; the last one computes the logits.

    Raises:
        UsageError: If the model is another one, or has a layer without an equivalent.
    """
    graph = functional_graph(model)
    if graph is None:
        raise UsageError(
            f"the model {model.name} is a {type(model).__name__}; other frameworks are compared "
            "with Sequential and functional models; compare it with plain"
        )
    writer = _Writer(model.name)
    writer.add_model(graph, [0])
    nodes = writer.nodes
    if nodes and nodes[-1].kind == "softmax":
        nodes = nodes[:-1]
    if any(node.kind == "softmax" for node in nodes):
        raise UsageError(f"the model {model.name} has a softmax inside; compare it with plain")
    return nodes


def parameters_of(model: keras.Model) -> int:
    """Returns the number of parameters, without the constants of `Normalization`."""
    constants = [x for x in all_layers(model) if isinstance(x, keras.layers.Normalization)]
    total: int = model.count_params() - sum(layer.count_params() for layer in constants)
    return total


class _Writer:
    """Collects the operations of a model and of those nested in it."""

    def __init__(self, model: str) -> None:
        self._model = model
        self.nodes: list[Node] = []

    def add_model(self, graph: keras.Model, inputs: list[int]) -> int:
        """Adds a functional model; returns the number of its output."""
        numbers = {id(t): n for t, n in zip(graph.inputs, inputs, strict=True)}
        for call in calls_in_order(graph):
            taken = [numbers[id(tensor)] for tensor in call.input_tensors]
            numbers[id(call.outputs[0])] = self._add(call, taken)
        return numbers[id(graph.outputs[0])]

    def _add(self, call: Any, inputs: list[int]) -> int:
        operation = call.operation
        if isinstance(operation, keras.Model):
            nested = functional_graph(operation)
            if nested is not None:
                return self.add_model(nested, inputs)
        describe = _KINDS.get(type(operation).__name__)
        described = describe(operation, call) if describe else None
        if described is None:
            raise UsageError(
                f"the model {self._model} has a {type(operation).__name__} ({operation.name}) that "
                "has no equivalent in other frameworks; compare it with plain"
            )
        last = inputs
        for kind, settings in described:
            layer = operation.name if kind in _WEIGHTED else ""
            self.nodes.append(Node(kind, tuple(last), settings, layer))
            last = [len(self.nodes)]
        return last[0]


Described = list[tuple[str, dict[str, Any]]] | None
"""Operations that compute a layer one after the other; None if there are none."""


def _activation(function: Any) -> Described:
    name = getattr(function, "__name__", "linear") if function is not None else "linear"
    if name == "softmax":
        return [("softmax", {})]
    if name not in ACTIVATIONS:
        return None
    return [] if name == "linear" else [("activation", {"name": name})]


def _with_activation(kind: str, settings: dict[str, Any], layer: Any) -> Described:
    following = _activation(layer.activation)
    return None if following is None else [(kind, settings), *following]


def _in_float32(layer: Any) -> bool:
    return bool(layer.compute_dtype == "float32")


def _convolution(layer: Any, _: Any) -> Described:
    if layer.data_format != "channels_last":
        return None
    channels = layer.input.shape[-1]
    depthwise = isinstance(layer, keras.layers.DepthwiseConv2D)
    settings = {
        "channels": channels,
        "filters": channels * layer.depth_multiplier if depthwise else layer.filters,
        "kernel": list(layer.kernel_size),
        "strides": list(layer.strides),
        "dilation": list(layer.dilation_rate),
        "groups": channels if depthwise else layer.groups,
        "same": layer.padding == "same",
        "bias": layer.use_bias,
    }
    return _with_activation("convolution", settings, layer)


def _dense(layer: Any, _: Any) -> Described:
    limit = layer.kernel_constraint
    if limit is not None and (not isinstance(limit, keras.constraints.MaxNorm) or limit.axis != 0):
        return None
    settings = {
        "features": layer.input.shape[-1],
        "units": layer.units,
        "bias": layer.use_bias,
        "float32": _in_float32(layer),
        "maximum_norm": None if limit is None else float(limit.max_value),
    }
    return _with_activation("dense", settings, layer)


def _batch_normalisation(layer: Any, _: Any) -> Described:
    if layer.axis not in (-1, len(layer.input.shape) - 1) or layer.renorm:
        return None
    settings = {
        "channels": layer.input.shape[-1],
        "images": len(layer.input.shape) == 4,
        "epsilon": layer.epsilon,
        "momentum": layer.momentum,
        "scale": layer.scale,
        "center": layer.center,
    }
    return [("batch_normalisation", settings)]


def _layer_normalisation(layer: Any, _: Any) -> Described:
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)
    if axes not in ([-1], [len(layer.input.shape) - 1]) or not (layer.scale and layer.center):
        return None
    settings = {"channels": layer.input.shape[-1], "epsilon": layer.epsilon}
    return [("layer_normalisation", settings)]


def _relu(layer: Any, _: Any) -> Described:
    if layer.negative_slope or layer.threshold or layer.max_value not in (None, 6):
        return None
    return [("activation", {"name": "relu" if layer.max_value is None else "relu6"})]


def _pooling(kind: str) -> Callable[[Any, Any], Described]:
    def describe(layer: Any, _: Any) -> Described:
        same = layer.padding == "same"
        if layer.data_format != "channels_last" or (same and kind == "average_pooling"):
            return None
        sizes = {"size": list(layer.pool_size), "strides": list(layer.strides), "same": same}
        return [(kind, sizes)]

    return describe


def _global_pooling(kind: str) -> Callable[[Any, Any], Described]:
    return lambda layer, _: [(kind, {"keep": layer.keepdims, "float32": _in_float32(layer)})]


def _dropout(layer: Any, _: Any) -> Described:
    if layer.noise_shape is not None and any(n not in (1, None) for n in layer.noise_shape):
        return None
    whole = layer.noise_shape is not None
    return [("dropout", {"rate": layer.rate, "whole": whole})] if layer.rate else []


def _normalisation(layer: Any, _: Any) -> Described:
    deviation = np.maximum(np.sqrt(np.asarray(layer.variance)), keras.config.epsilon())
    scale = (1 / deviation).ravel()
    offset = -np.asarray(layer.mean).ravel() * scale
    return [("affine", {"scale": scale.tolist(), "offset": offset.tolist()})]


def _rescaling(layer: Any, _: Any) -> Described:
    values = {"scale": layer.scale, "offset": layer.offset}
    return [("affine", {key: np.ravel(value).tolist() for key, value in values.items()})]


def _layer_scale(layer: Any, _: Any) -> Described:
    settings = {"channels": layer.projection_dim, "start": layer.init_values}
    return [("layer_scale", settings)]


def _combined(kind: str) -> Callable[[Any, Any], Described]:
    """Describes a sum or product of tensors, or of a tensor and a number."""

    def describe(operation: Any, call: Any) -> Described:
        if len(call.input_tensors) > 1:
            return [(kind, {})]
        numbers = [a for a in call.arguments.args if isinstance(a, int | float)]
        if len(numbers) != 1:
            return None
        scale, offset = (1.0, numbers[0]) if kind == "add" else (numbers[0], 0.0)
        return [("affine", {"scale": [float(scale)], "offset": [float(offset)]})]

    return describe


_WEIGHTED = (
    *("convolution", "dense", "batch_normalisation", "layer_normalisation", "layer_scale"),
)

_KINDS: Mapping[str, Callable[[Any, Any], Described]] = {
    "Conv2D": _convolution,
    "DepthwiseConv2D": _convolution,
    "Dense": _dense,
    "BatchNormalization": _batch_normalisation,
    "LayerNormalization": _layer_normalisation,
    "LayerScale": _layer_scale,
    "Activation": lambda layer, _: _activation(layer.activation),
    "Softmax": lambda layer, _: [("softmax", {})],
    "ReLU": _relu,
    "MaxPooling2D": _pooling("max_pooling"),
    "AveragePooling2D": _pooling("average_pooling"),
    "GlobalAveragePooling2D": _global_pooling("global_average"),
    "GlobalMaxPooling2D": _global_pooling("global_maximum"),
    "ZeroPadding2D": lambda layer, _: [("padding", {"sides": [list(s) for s in layer.padding]})],
    "Flatten": lambda layer, _: [("flatten", {})],
    "Reshape": lambda layer, _: [("reshape", {"shape": list(layer.target_shape)})],
    "Dropout": _dropout,
    "Rescaling": _rescaling,
    "Normalization": _normalisation,
    "Add": _combined("add"),
    "Multiply": _combined("multiply"),
    "Concatenate": lambda layer, _: [("concatenate", {})] if layer.axis in (-1, 3) else None,
}
"""By the name of a Keras class, what computes it."""
