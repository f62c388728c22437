"""The floor of a training step: its convolutions and matrix products alone.

No rewriting of the rest of the step can make it faster than these operations on this machine.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.benchmarking.flops import LargeProduct
from distcnn.benchmarking.peers.results import Floor
from distcnn.benchmarking.progress import Budget, Say, rounds, say_progress
from distcnn.benchmarking.statistics import noise_floor, ratio_of_quartiles
from distcnn.benchmarking.step_timing import TimedSteps, require_steps, resident_batch
from distcnn.engine.pointwise import as_products
from distcnn.errors import DistcnnError
from distcnn.training.setup import TrainingSetup

_CONVOLUTIONS = {
    prefix + suffix
    for prefix, suffixes in {
        "Conv2D": ("", "BackpropInput", "BackpropFilter"),
        "Conv3D": ("", "BackpropInputV2", "BackpropFilterV2"),
        "DepthwiseConv2dNative": ("", "BackpropInput", "BackpropFilter"),
    }.items()
    for suffix in suffixes
}
_PRODUCTS = {"MatMul", "BatchMatMul", "BatchMatMulV2", "BatchMatMulV3", "Einsum"}

_TRIED = 5
_PARTS = ("one by one", "as scheduled by TensorFlow")


@dataclass(frozen=True)
class Operation:
    """A convolution or product of a training step.

    Attributes:
        kind: Name of TensorFlow's operation.
        inputs: By name, the shape and dtype of each input, or the value of one that is a size. An
            `Einsum` has a list of them.
        attributes: The operation's attributes.
        flops: Floating point operations, a multiply-add counting as two.
    """

    kind: str
    inputs: dict[str, Any]
    attributes: dict[str, Any]
    flops: float

    @property
    def is_convolution(self) -> bool:
        """Whether it is a convolution, forward or backward."""
        return self.kind in _CONVOLUTIONS

    def create(self) -> Callable[[], tf.Tensor]:
        """Creates the inputs, filled with small numbers; returns a function that computes."""
        inputs = {name: _filled(entry) for name, entry in self.inputs.items()}
        compute = getattr(tf.raw_ops, self.kind)
        return lambda: compute(**inputs, **self.attributes)


def measure_floor(
    setup: TrainingSetup, repeats: int, budget: Budget, say: Say = say_progress
) -> Floor:
    """Times the training step in turn with its convolutions and products, and a large product.

    Args:
        setup: The run on one device, built but not started.
        repeats: Number of times to time each, if the budget suffices.
        budget: Time to measure in; everything is timed at least once.
        say: Takes lines of progress.

    Raises:
        DistcnnError: If the model has neither convolutions nor products.
    """
    require_steps(setup)
    batch = setup.sampler.global_batch_size
    say("floor: tracing the step")
    timed = TimedSteps(setup.training, resident_batch(setup))
    say("floor: collecting the convolutions and products")
    operations = operations_of(setup.model, batch)
    parts = {
        "all": operations,
        "convolutions": [one for one in operations if one.is_convolution],
        "products": [one for one in operations if not one.is_convolution],
    }
    if not operations:
        raise DistcnnError(f"{setup.model.name} has no convolution and no matrix product to time")
    arrangement, functions = _fastest_arrangement(parts)
    product = LargeProduct(keras.config.dtype_policy().compute_dtype)
    seconds: dict[str, list[float]] = {name: [] for name in ("step", *functions)}
    products: list[float] = []
    say("floor: timing in turn")
    for _ in rounds("floor", repeats, budget, say):
        count = len(timed.seconds)
        while len(timed.seconds) == count:
            timed.repeat()
        seconds["step"].append(timed.seconds[-1])
        for name, function in functions.items():
            seconds[name].append(_time(function))
        products.append(product.seconds())
    return _floor(setup, operations, arrangement, seconds, product.flops / min(products))


def _floor(
    setup: TrainingSetup,
    operations: Sequence[Operation],
    arrangement: str,
    seconds: dict[str, list[float]],
    peak: float,
) -> Floor:
    ratio, low, high = ratio_of_quartiles(seconds["step"], seconds["all"])
    quartiles = {k: 1e3 * float(np.percentile(v, 25)) if v else 0.0 for k, v in seconds.items()}
    flops = sum(one.flops for one in operations)
    convolutions = sum(one.is_convolution for one in operations)
    return Floor(
        batch=setup.sampler.global_batch_size,
        precision=setup.precision.policy,
        convolutions=convolutions,
        products=len(operations) - convolutions,
        arrangement=arrangement,
        rounds=len(seconds["step"]),
        step_ms=quartiles["step"],
        floor_ms=quartiles["all"],
        convolutions_ms=quartiles.get("convolutions", 0.0),
        products_ms=quartiles.get("products", 0.0),
        ratio=ratio,
        ratio_low=low,
        ratio_high=high,
        noise=noise_floor(seconds["all"]),
        gflop=flops / 1e9,
        peak_gflops=peak / 1e9,
        peak_ms=1e3 * flops / peak,
        cores=len(os.sched_getaffinity(0)),
    )


def operations_of(model: keras.Model, batch: int) -> list[Operation]:
    """Returns the convolutions and products of a forward and a backward pass of the plain model.

    Gradients of all trainable weights count, but not that of the images.

    Args:
        model: The model.
        batch: Number of images.
    """

    def gradients(images: tf.Tensor) -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            output = model(images, training=True)
            total = tf.reduce_sum(tf.cast(output, tf.float32))
        return as_products(tape.gradient(total, [v.value for v in model.trainable_variables]))

    spec = tf.TensorSpec((batch, *model.input_shape[1:]), tf.float32)
    graph = tf.function(gradients, jit_compile=False).get_concrete_function(spec).graph
    used = _used(graph)
    return [
        _operation(node)
        for node in graph.get_operations()
        if node.name in used and node.type in _CONVOLUTIONS | _PRODUCTS
    ]


def _used(graph: Any) -> set[str]:
    """Returns the names of the operations that the outputs depend on; the others never run."""
    waiting = [tensor.op for tensor in graph.outputs]
    used: set[str] = set()
    while waiting:
        node = waiting.pop()
        if node.name not in used:
            used.add(node.name)
            waiting += [tensor.op for tensor in node.inputs]
    return used


def _operation(node: tf.Operation) -> Operation:
    arguments = node.op_def.input_arg
    entries = [_entry(tensor, node) for tensor in node.inputs]
    inputs: dict[str, Any] = {arguments[0].name: entries}  # Einsum's
    if not arguments[0].number_attr:
        inputs = {arg.name: entry for arg, entry in zip(arguments, entries, strict=True)}
    implied = {name for arg in arguments for name in (arg.type_attr, arg.number_attr)}
    attributes = {
        attribute.name: node.get_attr(attribute.name)
        for attribute in node.op_def.attr
        if attribute.name not in implied
    }
    return Operation(node.type, inputs, attributes, _flops(node))


def _entry(tensor: tf.Tensor, node: tf.Operation) -> Any:
    if tensor.dtype.is_floating:
        return tuple(tensor.shape), tensor.dtype.name
    # The size of the result of a backward convolution.
    return tf.constant(node.outputs[0].shape.as_list(), tensor.dtype)


def _filled(entry: Any) -> Any:
    if isinstance(entry, list):
        return [_filled(one) for one in entry]
    if isinstance(entry, tuple):
        shape, dtype = entry
        return tf.cast(tf.random.stateless_normal(shape, [1, 2], stddev=0.05), dtype)
    return entry


def _flops(node: tf.Operation) -> float:
    """Returns the floating point operations: two for each multiply-add."""
    shapes = [tuple(tensor.shape) for tensor in node.inputs]
    result = tuple(node.outputs[0].shape)
    if node.type == "Einsum":
        subscripts = "".join(node.get_attr("equation").decode().split("->")[0].split(","))
        sizes = dict(zip(subscripts, itertools.chain(*shapes), strict=True))
        return 2.0 * math.prod(sizes.values())
    if node.type in _PRODUCTS:
        transposed = node.get_attr("transpose_a" if node.type == "MatMul" else "adj_x")
        return 2.0 * math.prod(result) * shapes[0][-2 if transposed else -1]
    # Forward and backward, each weight meets each position of the output once for an image.
    kernel = result if "BackpropFilter" in node.type else shapes[1]
    output = shapes[2] if "Backprop" in node.type else result
    meetings = math.prod(output[:-1]) * math.prod(kernel)
    return 2.0 * meetings


def _fastest_arrangement(
    parts: dict[str, list[Operation]],
) -> tuple[str, dict[str, Callable[[], Any]]]:
    """Builds a function for each part; all of them one by one or not, whichever is faster."""
    computations = {id(one): one.create() for one in parts["all"]}
    chosen = [computations[id(one)] for one in parts["all"]]
    forms = {name: _function(chosen, ordered=name == _PARTS[0]) for name in _PARTS}
    times = {name: min(_time(form) for _ in range(_TRIED)) for name, form in forms.items()}
    best = min(times, key=lambda name: times[name])
    functions: dict[str, Callable[[], Any]] = {"all": forms[best]}
    for name in ("convolutions", "products"):
        if parts[name]:
            chosen = [computations[id(one)] for one in parts[name]]
            functions[name] = _function(chosen, ordered=best == _PARTS[0])
            _time(functions[name])
    return best, functions


def _function(computations: Sequence[Callable[[], tf.Tensor]], *, ordered: bool) -> Any:
    """Returns a compiled function of all computations, in order if need be."""

    def run() -> tf.Tensor:
        corners: list[tf.Tensor] = []
        for compute in computations:
            with tf.control_dependencies(corners[-1:] if ordered else []):
                # A result that nothing uses would not be computed.
                corners.append(tf.cast(tf.reshape(compute(), [-1])[0], tf.float32))
        return tf.add_n(corners)

    return tf.function(run)


def _time(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function().numpy()
    return time.perf_counter() - start
