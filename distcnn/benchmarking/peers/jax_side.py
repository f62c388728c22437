"""The step in plain JAX, compiled as a whole."""

import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
from jax import numpy as jnp

from distcnn.benchmarking.peers.jax_models import Layers, ShiftedLayers, Weights, logits_of
from distcnn.benchmarking.peers.side import Task, fastest
from distcnn.benchmarking.peers.spec import PeerSpec
from distcnn.benchmarking.progress import Say
from distcnn.errors import DistcnnError

_BETA_1, _BETA_2, _EPSILON = 0.9, 0.999, 1e-7

_FORMS: dict[str, type[Layers]] = {"lax convolutions": Layers, "shifted products": ShiftedLayers}
"""XLA's convolutions on a CPU are slow backwards, so products are tried as well."""


class JaxSide:
    """Trains the model of a step; weights and optimizer are donated to the compiled step.

    Args:
        task: What this process is told.
        say: Takes lines of progress.

    Attributes:
        state: What a step changes; see `initial_state`.
    """

    def __init__(self, task: Task, say: Say) -> None:
        jax.config.update("jax_default_prng_impl", "unsafe_rbg")  # the fastest random bits
        spec = task.spec()
        _require_device(spec)
        if spec.gpu and not spec.tf32:
            jax.config.update("jax_default_matmul_precision", "float32")
        self._works_ahead = spec.gpu is not None
        forms = {name: form for name, form in _FORMS.items() if form is Layers or not spec.gpu}
        images, labels = task.batch()
        self._batch = jnp.asarray(images), jnp.asarray(labels)
        self.state = initial_state(*initial_weights(spec))
        self.parameters = sum(array.size for array in jax.tree.leaves(self.state[:2]))
        self._loss: Any = float("nan")
        compiled = {name: compiled_step(spec, form) for name, form in forms.items()}
        timed = {name: partial(self._seconds, step) for name, step in compiled.items()}
        best, words = fastest(timed, task.budget, say)
        self._step = compiled[best]
        self.title = f"jax {jax.__version__}"
        self.precision = spec.precision
        self.settings = [
            words,
            "whole step in jit",
            "NHWC",
            "arguments donated",
            "random bits by unsafe_rbg",
            *(["bfloat16 compute"] if spec.precision == "mixed_bfloat16" else []),
        ]

    def run(self, steps: int) -> list[float]:
        """Trains; returns the seconds of each step, on a GPU their mean, as it works ahead."""
        if not self._works_ahead:
            return [self._seconds(self._step) for _ in range(steps)]
        return [self._seconds(self._step, steps)] * steps

    def loss(self) -> float:
        """Returns the loss of the last step."""
        return float(self._loss)

    def _seconds(self, compiled: Callable[..., Any], steps: int = 1) -> float:
        start = time.perf_counter()
        for _ in range(steps):
            self.state, self._loss = compiled(self.state, *self._batch)
        jax.block_until_ready((self.state, self._loss))
        return (time.perf_counter() - start) / steps


def _require_device(spec: PeerSpec) -> None:
    """Checks that JAX computes on a GPU if distcnn does.

    Raises:
        DistcnnError: If it does not.
    """
    if spec.gpu and jax.default_backend() != "gpu":
        raise DistcnnError(
            f"distcnn computes on {spec.gpu}, but jax {jax.__version__} finds no GPU; install "
            "jax[cuda12] or jax[cuda13], or set CUDA_VISIBLE_DEVICES= to compare on the CPU"
        )


def initial_weights(spec: PeerSpec) -> tuple[Weights, Weights]:
    """Returns the initial weights and moving statistics, created by a pass over one image."""

    def create() -> tuple[Weights, Weights]:
        weights: Weights = {}
        statistics: Weights = {}
        layers = Layers(weights, statistics, jax.random.key(0), jnp.float32, creating=True)
        logits_of(layers, spec.nodes, jnp.zeros((1, *spec.image_shape)))
        return weights, statistics

    created: tuple[Weights, Weights] = jax.jit(create)()  # one program, without the pass itself
    return created


def initial_state(weights: Weights, statistics: Weights) -> Any:
    """Returns what a step changes: weights, statistics, moments, number of steps."""
    zeros = partial(jax.tree.map, jnp.zeros_like)
    return weights, statistics, (zeros(weights), zeros(weights)), jnp.zeros([], jnp.int32)


def compiled_step(spec: PeerSpec, form: type[Layers]) -> Callable[..., Any]:
    """Returns a function of state, images and labels that returns the new state and the loss."""
    dtype = jnp.bfloat16 if spec.precision == "mixed_bfloat16" else jnp.float32

    def mean_loss(weights: Any, statistics: Any, images: Any, labels: Any, key: Any) -> Any:
        layers = form(weights, statistics, key, dtype)
        scaled = images.astype(jnp.float32) * spec.pixel_scale + spec.pixel_offset
        logits = logits_of(layers, spec.nodes, scaled.astype(dtype))
        return -(labels * jax.nn.log_softmax(logits)).sum(-1).mean(), layers.moved

    limits = {
        f"{node.layer}/kernel": node.settings["maximum_norm"]
        for node in spec.nodes
        if node.settings.get("maximum_norm") is not None
    }

    def step(state: Any, images: Any, labels: Any) -> Any:
        weights, statistics, moments, count = state
        key = jax.random.fold_in(jax.random.key(1), count)
        (loss, statistics), gradients = jax.value_and_grad(mean_loss, has_aux=True)(
            weights, statistics, images, labels, key
        )
        update = _adam if spec.optimizer == "adam" else _sgd
        weights, moments = update(spec, weights, gradients, moments, count + 1)
        return (_limited(weights, limits), statistics, moments, count + 1), loss

    return jax.jit(step, donate_argnums=0)


def _adam(spec: PeerSpec, weights: Any, gradients: Any, moments: Any, count: Any) -> Any:
    """Adam (Kingma and Ba 2015), with the bias correction in the rate as in Keras."""
    first = jax.tree.map(lambda m, g: _BETA_1 * m + (1 - _BETA_1) * g, moments[0], gradients)
    second = jax.tree.map(lambda v, g: _BETA_2 * v + (1 - _BETA_2) * g * g, moments[1], gradients)
    rate = spec.learning_rate * jnp.sqrt(1 - _BETA_2**count) / (1 - _BETA_1**count)
    return (
        jax.tree.map(
            lambda w, m, v: w - rate * m / (jnp.sqrt(v) + _EPSILON), weights, first, second
        ),
        (first, second),
    )


def _sgd(spec: PeerSpec, weights: Any, gradients: Any, moments: Any, count: Any) -> Any:
    """SGD with Nesterov momentum, as in Keras."""
    rate, momentum = spec.learning_rate, spec.momentum
    first = jax.tree.map(lambda m, g: momentum * m - rate * g, moments[0], gradients)
    return (
        jax.tree.map(lambda w, m, g: w + momentum * m - rate * g, weights, first, gradients),
        (first, moments[1]),
    )


def _limited(weights: Weights, limits: Mapping[str, float]) -> Weights:
    """Limits the norms of the columns of some kernels, given by name."""

    def limit(kernel: Any, most: float) -> Any:
        norms = jnp.sqrt((kernel * kernel).sum(0, keepdims=True))
        return kernel * jnp.clip(norms, 0, most) / (norms + _EPSILON)

    return {
        name: limit(value, limits[name]) if name in limits else value
        for name, value in weights.items()
    }


def build(task: Task, say: Say) -> JaxSide:
    """Builds the side of this module."""
    return JaxSide(task, say)
