"""A model rebuilt in PyTorch from the operations of a Keras model."""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from distcnn.benchmarking.peers.graph import Node


class GraphModel(nn.Module):
    """Computes the operations of a Keras model, images in NCHW with `channels_last` memory.

    Args:
        nodes: The operations; see `distcnn.benchmarking.peers.graph`.

    Attributes:
        limited: The dense layers whose kernels have a maximum norm for each unit, and that norm.
        layers: The layers with weights, by the name of the Keras layer.
    """

    def __init__(self, nodes: Sequence[Node]) -> None:
        super().__init__()
        self.layers = nn.ModuleDict()
        self.limited: list[tuple[Any, float]] = []
        self._calls: list[tuple[Callable[..., Any], tuple[int, ...]]] = []
        last_use = {number: place for place, node in enumerate(nodes) for number in node.inputs}
        self._done = [[n for n in node.inputs if last_use[n] == p] for p, node in enumerate(nodes)]
        uses = Counter(number for node in nodes for number in node.inputs)
        for node in nodes:
            operation = self._operation(node)
            if node.kind == "activation" and node.inputs[0] and uses[node.inputs[0]] == 1:
                operation = _IN_PLACE.get(node.settings["name"], operation)
            self._calls.append((operation, node.inputs))

    def forward(self, images: Any) -> Any:
        """Returns float32 logits of shape `(batch, classes)` of images in NCHW."""
        values = {0: images}
        for place, (operation, inputs) in enumerate(self._calls):
            outputs = operation(*(values[number] for number in inputs))
            for number in self._done[place]:
                values.pop(number, None)
            values[place + 1] = outputs
        return outputs.float()

    def _operation(self, node: Node) -> Callable[..., Any]:
        if not node.layer:
            return _FUNCTIONS[node.kind](node.settings)
        key = node.layer
        if key not in self.layers:
            self.layers[key] = _LAYERS[node.kind](node.settings)
            limit = node.settings.get("maximum_norm")
            if limit is not None:
                self.limited.append((self.layers[key], limit))
        return _APPLIED.get(node.kind, _plainly)(self.layers[key], node.settings)


def _plainly(layer: Any, settings: dict[str, Any]) -> Callable[..., Any]:
    return layer


def _convolution(s: dict[str, Any]) -> Any:
    return nn.Conv2d(
        s["channels"],
        s["filters"],
        tuple(s["kernel"]),
        tuple(s["strides"]),
        padding=_symmetric(s) or 0,
        dilation=tuple(s["dilation"]),
        groups=s["groups"],
        bias=s["bias"],
    )


def _symmetric(s: dict[str, Any]) -> tuple[int, ...] | None:
    """Returns the padding on both sides of `same`, or None if there is none or it is not equal."""
    if not s["same"] or s["strides"] != [1, 1]:
        return None
    spread = [d * (k - 1) for k, d in zip(s["kernel"], s["dilation"], strict=True)]
    return None if any(n % 2 for n in spread) else tuple(n // 2 for n in spread)


def _convolved(layer: Any, s: dict[str, Any]) -> Callable[..., Any]:
    if not s["same"] or _symmetric(s) is not None:
        return layer
    return lambda x: layer(_padded_as_same(x, s["kernel"], s["strides"], s["dilation"]))


def _padded_as_same(
    x: Any, kernel: Sequence[int], strides: Sequence[int], dilation: Sequence[int], value: float = 0
) -> Any:
    """Pads as Keras' `same` does, with one pixel more below and on the right where it is odd."""
    sides: list[int] = []
    for size, k, stride, d in zip(x.shape[2:], kernel, strides, dilation, strict=True):
        total = max((-(-size // stride) - 1) * stride + d * (k - 1) + 1 - size, 0)
        sides = [total // 2, total - total // 2, *sides]
    return functional.pad(x, sides, value=value) if any(sides) else x


def _dense(layer: Any, s: dict[str, Any]) -> Callable[..., Any]:
    def compute(x: Any) -> Any:
        if x.dim() == 4:
            return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if not s["float32"]:
            return layer(x)
        with torch.autocast(x.device.type, enabled=False):
            return layer(x.float())

    return compute


def _batch_normalisation(s: dict[str, Any]) -> Any:
    kind = nn.BatchNorm2d if s["images"] else nn.BatchNorm1d
    layer = kind(s["channels"], eps=s["epsilon"], momentum=1 - s["momentum"])
    for used, parameter in ((s["scale"], layer.weight), (s["center"], layer.bias)):
        parameter.requires_grad_(used)
    return layer


def _layer_normalisation(layer: Any, s: dict[str, Any]) -> Callable[..., Any]:
    def compute(x: Any) -> Any:
        if x.dim() != 4:
            return layer(x)
        return layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    return compute


class _LayerScale(nn.Module):
    def __init__(self, channels: int, start: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full([channels, 1, 1], float(start)))

    def forward(self, x: Any) -> Any:
        return x * self.gamma.to(x.dtype)


def _global_pooling(s: dict[str, Any], pool: Callable[..., Any]) -> Callable[..., Any]:
    return lambda x: pool(x.float() if s["float32"] else x, s["keep"])


def _max_pooling(s: dict[str, Any]) -> Callable[..., Any]:
    size, strides = s["size"], s["strides"]

    def compute(x: Any) -> Any:
        padded = _padded_as_same(x, size, strides, [1, 1], float("-inf")) if s["same"] else x
        return functional.max_pool2d(padded, size, strides)

    return compute


def _affine(s: dict[str, Any]) -> Callable[..., Any]:
    def compute(x: Any) -> Any:
        shape = [-1, *[1] * (x.dim() - 2)]
        scale, offset = (x.new_tensor(s[key]) for key in ("scale", "offset"))
        return x * scale.view(shape) + offset.view(shape)

    if len(s["scale"]) == len(s["offset"]) == 1:
        return lambda x: x * s["scale"][0] + s["offset"][0]
    return compute


def _dropout(s: dict[str, Any]) -> Callable[..., Any]:
    if s["whole"]:
        return lambda x: x * functional.dropout(x.new_ones([len(x), 1, 1, 1]), s["rate"])
    return lambda x: functional.dropout(x, s["rate"])


def _reshape(s: dict[str, Any]) -> Callable[..., Any]:
    if len(s["shape"]) == 3:
        height, width, channels = s["shape"]
        return lambda x: x.reshape(len(x), height, width, channels).permute(0, 3, 1, 2)
    return lambda x: (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).reshape(len(x), *s["shape"])


def _product(first: Any, *others: Any) -> Any:
    for other in others:
        first = first * other
    return first


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": functional.relu,
    "relu6": functional.relu6,
    "gelu": functional.gelu,
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    "hard_silu": functional.hardswish,
    "hard_sigmoid": functional.hardsigmoid,
    "tanh": torch.tanh,
}

_IN_PLACE: dict[str, Callable[[Any], Any]] = {
    "relu": lambda x: functional.relu(x, inplace=True),
    "relu6": lambda x: functional.relu6(x, inplace=True),
}
"""For an input that nothing else reads."""

_LAYERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "convolution": _convolution,
    "dense": lambda s: nn.Linear(s["features"], s["units"], bias=s["bias"]),
    "batch_normalisation": _batch_normalisation,
    "layer_normalisation": lambda s: nn.LayerNorm(s["channels"], eps=s["epsilon"]),
    "layer_scale": lambda s: _LayerScale(s["channels"], s["start"]),
}

_APPLIED: dict[str, Callable[[Any, dict[str, Any]], Callable[..., Any]]] = {
    "convolution": _convolved,
    "dense": _dense,
    "layer_normalisation": _layer_normalisation,
}

_FUNCTIONS: dict[str, Callable[[dict[str, Any]], Callable[..., Any]]] = {
    "activation": lambda s: _ACTIVATIONS[s["name"]],
    "max_pooling": _max_pooling,
    "average_pooling": lambda s: lambda x: functional.avg_pool2d(x, s["size"], s["strides"]),
    "global_average": lambda s: _global_pooling(s, lambda x, keep: x.mean((2, 3), keepdim=keep)),
    "global_maximum": lambda s: _global_pooling(s, lambda x, keep: x.amax((2, 3), keepdim=keep)),
    "padding": lambda s: lambda x: functional.pad(x, [*s["sides"][1], *s["sides"][0]]),
    "flatten": lambda s: lambda x: (x.permute(0, 2, 3, 1) if x.dim() == 4 else x).flatten(1),
    "reshape": _reshape,
    "dropout": _dropout,
    "affine": _affine,
    "add": lambda s: lambda *x: sum(x[1:], x[0]),
    "multiply": lambda s: _product,
    "concatenate": lambda s: lambda *x: torch.cat(x, 1),
}
