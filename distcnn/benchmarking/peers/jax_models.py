"""The models that have an equivalent in JAX, in plain JAX."""

import math
from collections.abc import Callable
from typing import Any

import jax
from jax import lax
from jax import numpy as jnp
from typing_extensions import override

_WINDOW = ("NHWC", "HWIO", "NHWC")

Weights = dict[str, Any]


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

    def conv(
        self,
        x: Any,
        filters: int,
        size: int,
        *,
        stride: int = 1,
        padding: Any = "SAME",
        bias: bool = True,
    ) -> Any:
        """Returns a convolution of NHWC images."""
        name = self._name("conv")
        kernel = self._kernel(f"{name}/kernel", (size, size, x.shape[-1], filters))
        y = self._convolve(x, kernel, stride, padding)
        return y + self._vector(f"{name}/bias", filters, 0.0).astype(y.dtype) if bias else y

    def dense(self, x: Any, units: int, *, limited: bool = False) -> Any:
        """Returns a dense layer; the kernel of a limited one has a maximum norm for each unit."""
        name = self._name("limited" if limited else "dense")
        y = x @ self._kernel(f"{name}/kernel", (x.shape[-1], units))
        return y + self._vector(f"{name}/bias", units, 0.0).astype(y.dtype)

    def norm(self, x: Any, *, epsilon: float = 1e-3, momentum: float = 0.99) -> Any:
        """Returns batch normalisation, with the statistics of the batch in float32."""
        name = self._name("norm")
        axes = tuple(range(x.ndim - 1))
        wide = x.astype(jnp.float32)
        mean = wide.mean(axes)
        variance = jnp.maximum((wide * wide).mean(axes) - mean * mean, 0.0)
        for part, value, start in (("mean", mean, 0.0), ("variance", variance, 1.0)):
            before = self._statistic(f"{name}/{part}", x.shape[-1], start)
            self.moved[f"{name}/{part}"] = momentum * before + (1 - momentum) * value
        scale = self._vector(f"{name}/scale", x.shape[-1], 1.0) * lax.rsqrt(variance + epsilon)
        offset = self._vector(f"{name}/offset", x.shape[-1], 0.0) - mean * scale
        return (wide * scale + offset).astype(x.dtype)

    def drop(self, x: Any, rate: float) -> Any:
        """Returns dropout."""
        if not rate:
            return x
        self._calls += 1
        key = jax.random.fold_in(self._key, self._calls)
        kept = jax.random.bits(key, x.shape, jnp.uint8) >= round(256 * rate)
        return jnp.where(kept, x / (1 - rate), 0).astype(x.dtype)

    def max_pool(self, x: Any, size: int = 2, stride: int = 2, padding: Any = "VALID") -> Any:
        """Returns max pooling."""
        window, strides = (1, size, size, 1), (1, stride, stride, 1)
        return lax.reduce_window(x, -jnp.inf, lax.max, window, strides, padding)

    def _convolve(self, x: Any, kernel: Any, stride: int, padding: Any) -> Any:
        strides = (stride, stride)
        return lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_WINDOW)

    def _name(self, kind: str) -> str:
        self._calls += 1
        return f"{kind}{self._calls}"

    def _kernel(self, name: str, shape: tuple[int, ...]) -> Any:
        if self._creating:
            receptive = math.prod(shape[:-2])
            limit = math.sqrt(6 / (receptive * (shape[-2] + shape[-1])))  # Glorot, as in Keras
            key = jax.random.fold_in(self._key, self._calls)
            self._weights[name] = jax.random.uniform(key, shape, jnp.float32, -limit, limit)
        return self._weights[name].astype(self._dtype)

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
    def _convolve(self, x: Any, kernel: Any, stride: int, padding: Any) -> Any:
        height, width = kernel.shape[:2]
        if padding == "SAME":
            padding = lax.padtype_to_pads(x.shape[1:3], (height, width), (stride, stride), "SAME")
        padded = jnp.pad(x, ((0, 0), *padding, (0, 0)))
        rows = (padded.shape[1] - height) // stride * stride + 1
        columns = (padded.shape[2] - width) // stride * stride + 1
        return sum(
            padded[:, i : i + rows : stride, j : j + columns : stride] @ kernel[i, j]
            for i in range(height)
            for j in range(width)
        )


def article(layers: Layers, x: Any, classes: int, dropout: float) -> Any:
    """The article's network; see `distcnn.models.article`."""
    for filters, pool in ((32, False), (64, True), (64, True), (128, False)):
        x = jax.nn.relu(layers.conv(x, filters, 3))
        x = layers.max_pool(x) if pool else x
        x = layers.norm(layers.drop(x, dropout))
    x = layers.drop(x.reshape(len(x), -1), dropout)
    for units in (256, 128):
        x = jax.nn.relu(layers.dense(x, units, limited=True))
        x = layers.norm(layers.drop(x, dropout))
    return layers.dense(x.astype(jnp.float32), classes)


def compact(layers: Layers, x: Any, classes: int, dropout: float) -> Any:
    """The small residual network; see `distcnn.models.compact`."""

    def normalised(x: Any) -> Any:
        return jax.nn.relu(layers.norm(x, momentum=0.9))

    widths = (32, 64, 128, 256)
    x = normalised(layers.max_pool(layers.conv(x, widths[0], 3, bias=False)))
    for stage, width in enumerate(widths[1:]):
        x = layers.max_pool(x) if stage else x
        x = normalised(layers.conv(x, width, 3, bias=False))
    x = x + normalised(layers.conv(x, widths[-1], 3, bias=False))
    return layers.dense(x.max((1, 2)).astype(jnp.float32), classes)


def resnet50(layers: Layers, x: Any, classes: int, dropout: float) -> Any:
    """The ResNet-50 of `keras.applications`."""

    def convolved(x: Any, width: int, size: int, stride: int = 1) -> Any:
        padding = [(size // 2, size // 2)] * 2
        x = layers.conv(x, width, size, stride=stride, padding=padding)
        return layers.norm(x, epsilon=1.001e-5)

    x = jax.nn.relu(convolved(x, 64, 7, 2))
    x = layers.max_pool(x, 3, 2, [(0, 0), (1, 1), (1, 1), (0, 0)])
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for block in range(blocks):
            step = 1 if block else stride
            shortcut = x if block else convolved(x, 4 * width, 1, step)
            y = jax.nn.relu(convolved(x, width, 1, step))
            y = jax.nn.relu(convolved(y, width, 3))
            x = jax.nn.relu(shortcut + convolved(y, 4 * width, 1))
    return layers.dense(x.mean((1, 2)), classes).astype(jnp.float32)


MODELS: dict[str, Callable[[Layers, Any, int, float], Any]] = {
    "article": article,
    "compact": compact,
    "resnet50": resnet50,
}
"""The models by the name of their Keras equivalent: from layers, NHWC images, number of classes and
rate of dropout to float32 logits."""
