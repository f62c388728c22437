"""A model rebuilt in plain JAX from the operations of a Keras model."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from typing_extensions import override

from distcnn.benchmarking.peers.graph import Node

_WINDOW = ("NHWC", "HWIO", "NHWC")

Weights = dict[str, Any]

Settings = dict[str, Any]


class Layers:
    """The layers of one forward pass, which create their weights in the first one.

    Args:
        weights: float32 trainable arrays by name; filled if `creating`.
        statistics: float32 moving statistics by name; filled if `creating`.
        key: Key of the random numbers.
        dtype: Type to compute in.
        creating: Whether to create the weights.

    Attributes:
        moved: The moving statistics after this pass.
    """

    def __init__(
        self, weights: Weights, statistics: Weights, key: Any, dtype: Any, *, creating: bool = False
    ) -> None:
        self._weights = weights
        self._statistics = statistics
        self._key = key
        self._dtype = dtype
        self._creating = creating
        self._calls = 0
        self.moved: Weights = {}

    def conv(self, x: Any, name: str, s: Settings) -> Any:
        """Returns a convolution of NHWC images."""
        shape = (*s["kernel"], s["channels"] // s["groups"], s["filters"])
        y = self._convolve(x, self._kernel(f"{name}/kernel", shape), s)
        return self._biased(y, name, s["filters"]) if s["bias"] else y

    def dense(self, x: Any, name: str, s: Settings) -> Any:
        """Returns a dense layer, applied to the last axis."""
        if s["float32"]:
            x = x.astype(jnp.float32)
        y = x @ self._kernel(f"{name}/kernel", (s["features"], s["units"]), x.dtype)
        return self._biased(y, name, s["units"]) if s["bias"] else y

    def batch_norm(self, x: Any, name: str, s: Settings) -> Any:
        """Returns batch normalisation, with the statistics of the batch in float32."""
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean = wide.mean(axes)
        variance = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
        for part, value, start in (("mean", mean, 0.0), ("variance", variance, 1.0)):
            before = self._statistic(f"{name}/{part}", s["channels"], start)
            self.moved[f"{name}/{part}"] = s["momentum"] * before + (1 - s["momentum"]) * value
        scale = lax.rsqrt(variance + s["epsilon"])
        if s["scale"]:
            scale = scale * self._vector(f"{name}/scale", s["channels"], 1.0)
        offset = -mean * scale
        if s["center"]:
            offset = offset + self._vector(f"{name}/offset", s["channels"], 0.0)
        return (wide * scale + offset).astype(x.dtype)

    def layer_norm(self, x: Any, name: str, s: Settings) -> Any:
        """Returns layer normalisation over the last axis, computed in float32."""
        wide = x.astype(jnp.float32)
        mean = wide.mean(-1, keepdims=True)
        scale = lax.rsqrt(wide.var(-1, keepdims=True) + s["epsilon"])
        scale = scale * self._vector(f"{name}/scale", s["channels"], 1.0)
        offset = self._vector(f"{name}/offset", s["channels"], 0.0)
        return ((wide - mean) * scale + offset).astype(x.dtype)

    def layer_scale(self, x: Any, name: str, s: Settings) -> Any:
        """Returns the inputs times a trained factor for each channel."""
        return x * self._vector(f"{name}/gamma", s["channels"], s["start"]).astype(x.dtype)

    def drop(self, x: Any, s: Settings) -> Any:
        """Returns dropout, of each value or of whole images."""
        shape = (len(x), 1, 1, 1) if s["whole"] else x.shape
        kept = jax.random.bits(self._next_key(), shape, jnp.uint8) >= round(256 * s["rate"])
        return jnp.where(kept, x / (1 - s["rate"]), 0).astype(x.dtype)

    def _convolve(self, x: Any, kernel: Any, s: Settings) -> Any:
        return lax.conv_general_dilated(
            x,
            kernel,
            s["strides"],
            "SAME" if s["same"] else "VALID",
            rhs_dilation=s["dilation"],
            feature_group_count=s["groups"],
            dimension_numbers=_WINDOW,
        )

    def _biased(self, y: Any, name: str, size: int) -> Any:
        return y + self._vector(f"{name}/bias", size, 0.0).astype(y.dtype)

    def _next_key(self) -> Any:
        self._calls += 1
        return jax.random.fold_in(self._key, self._calls)

    def _kernel(self, name: str, shape: tuple[int, ...], dtype: Any = None) -> Any:
        if self._creating:
            receptive = math.prod(shape[:-2])
            limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))  # Glorot, as in Keras
            drawn = jax.random.uniform(self._next_key(), shape, jnp.float32, -limit, limit)
            self._weights[name] = drawn
        return self._weights[name].astype(dtype or self._dtype)

    def _vector(self, name: str, size: int, start: float) -> Any:
        if self._creating:
            self._weights[name] = jnp.full([size], start, jnp.float32)
        return self._weights[name]

    def _statistic(self, name: str, size: int, start: float) -> Any:
        if self._creating:
            self._statistics[name] = jnp.full([size], start, jnp.float32)
        return self._statistics[name]


class ShiftedLayers(Layers):
    """Computes a convolution as a sum of matrix products, one for each position of the kernel."""

    @override
    def _convolve(self, x: Any, kernel: Any, s: Settings) -> Any:
        depthwise = s["groups"] == s["channels"] == s["filters"]
        if s["dilation"] != [1, 1] or not (s["groups"] == 1 or depthwise):
            return super()._convolve(x, kernel, s)
        height, width = s["kernel"]
        down, right = s["strides"]
        if s["same"]:
            padding = lax.padtype_to_pads(x.shape[1:3], (height, width), (down, right), "SAME")
            x = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows = (x.shape[1] - height) // down * down + 1
        columns = (x.shape[2] - width) // right * right + 1
        shifted = (
            (x[:, i : i + rows : down, j : j + columns : right], kernel[i, j])
            for i in range(height)
            for j in range(width)
        )
        return sum(part * factor[0] if depthwise else part @ factor for part, factor in shifted)


def logits_of(layers: Layers, nodes: Sequence[Node], images: Any) -> Any:
    """Computes the operations of a Keras model.

    Args:
        layers: Holds the weights; those of a Keras layer are named after it.
        nodes: The operations; see `distcnn.benchmarking.peers.graph`.
        images: Scaled images in NHWC.

    Returns:
        float32 logits of shape `(batch, classes)`.
    """
    values = [images]
    for node in nodes:
        inputs = [values[number] for number in node.inputs]
        if node.layer:
            outputs = _LAYERS[node.kind](layers, inputs[0], node.layer, node.settings)
        elif node.kind == "dropout":
            outputs = layers.drop(inputs[0], node.settings)
        else:
            outputs = _FUNCTIONS[node.kind](node.settings, *inputs)
        values.append(outputs)
    return values[-1].astype(jnp.float32)


def _pooling(s: Settings, x: Any, start: Any, combine: Any) -> Any:
    window, strides = (1, *s["size"], 1), (1, *s["strides"], 1)
    padding = "SAME" if s["same"] else "VALID"
    return lax.reduce_window(x, start, combine, window, strides, padding)


def _average_pooling(s: Settings, x: Any) -> Any:
    return _pooling(s, x, 0.0, lax.add) / math.prod(s["size"])


def _global(s: Settings, x: Any, reduce: Callable[..., Any]) -> Any:
    return reduce(x.astype(jnp.float32) if s["float32"] else x, (1, 2), keepdims=s["keep"])


def _affine(s: Settings, x: Any) -> Any:
    scale, offset = (jnp.asarray(s[key], x.dtype) for key in ("scale", "offset"))
    return x * scale + offset


def _product(s: Settings, first: Any, *others: Any) -> Any:
    for other in others:
        first = first * other
    return first


_ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "relu": jax.nn.relu,
    "relu6": jax.nn.relu6,
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "silu": jax.nn.silu,
    "sigmoid": jax.nn.sigmoid,
    "hard_silu": jax.nn.hard_silu,
    "hard_sigmoid": jax.nn.hard_sigmoid,
    "tanh": jnp.tanh,
}

_LAYERS: dict[str, Callable[[Layers, Any, str, Settings], Any]] = {
    "convolution": lambda layers, *call: layers.conv(*call),
    "dense": lambda layers, *call: layers.dense(*call),
    "batch_normalisation": lambda layers, *call: layers.batch_norm(*call),
    "layer_normalisation": lambda layers, *call: layers.layer_norm(*call),
    "layer_scale": lambda layers, *call: layers.layer_scale(*call),
}

_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "activation": lambda s, x: _ACTIVATIONS[s["name"]](x),
    "max_pooling": lambda s, x: _pooling(s, x, -jnp.inf, lax.max),
    "average_pooling": _average_pooling,
    "global_average": lambda s, x: _global(s, x, jnp.mean),
    "global_maximum": lambda s, x: _global(s, x, jnp.max),
    "padding": lambda s, x: jnp.pad(x, ((0, 0), *s["sides"], (0, 0))),
    "flatten": lambda s, x: x.reshape(len(x), -1),
    "reshape": lambda s, x: x.reshape(len(x), *s["shape"]),
    "affine": _affine,
    "add": lambda s, *x: sum(x[1:], x[0]),
    "multiply": _product,
    "concatenate": lambda s, *x: jnp.concatenate(x, -1),
}
