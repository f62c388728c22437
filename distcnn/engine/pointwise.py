"""Gradients of 1 x 1 convolutions, as matrix products."""

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

from distcnn.distribute.packing import undo_upcast
from distcnn.runtime.precision import find_hardware


def as_products(gradients: Sequence[Any]) -> list[Any]:
    """Computes the gradients of 1 x 1 convolutions' kernels as the products that they are.

    In bfloat16 on a CPU with matrix units (AMX), oneDNN's gradient of such a kernel takes two to
    four times as long as a product of the same size; on other CPUs it does not. It also sums the
    gradient of the bias, which becomes a product, too. The operations that computed them before
    are left unused in the graph, and TensorFlow drops them.

    Args:
        gradients: What the backward pass computed for the variables of a model.

    Returns:
        Gradients of the same shapes and dtypes, equal but for rounding; all others as they are.
    """
    found = list(gradients)
    if tf.executing_eagerly() or not _products_are_faster():
        return found
    upstreams = set()
    for index, gradient in enumerate(gradients):
        factors = _factors_of_kernel(gradient)
        if factors is not None:
            found[index] = _product(*factors, like=gradient)
            upstreams.add(factors[1].ref())
    for index, gradient in enumerate(gradients):
        narrow = _computed_by("BiasAddGrad", gradient)
        if narrow is not None and narrow.op.inputs[0].ref() in upstreams:
            upstream = narrow.op.inputs[0]
            ones = tf.ones([tf.size(upstream) // upstream.shape[3], 1], upstream.dtype)
            found[index] = _product(ones, upstream, like=gradient)
    return found


def _products_are_faster() -> bool:
    hardware = find_hardware()
    return hardware.gpu is None and "amx_bf16" in hardware.cpu_flags


def _computed_by(kind: str, gradient: Any) -> tf.Tensor | None:
    """Returns the bfloat16 gradient that an operation of a kind has computed, or None."""
    if not isinstance(gradient, tf.Tensor):
        return None
    narrow = undo_upcast(gradient)
    return narrow if narrow.dtype == tf.bfloat16 and narrow.op.type == kind else None


def _factors_of_kernel(gradient: Any) -> tuple[tf.Tensor, tf.Tensor] | None:
    """Returns the inputs and the upstream gradient of a 1 x 1 convolution, or None."""
    narrow = _computed_by("Conv2DBackpropFilter", gradient)
    if narrow is None:
        return None
    inputs, _, upstream = narrow.op.inputs
    attribute = narrow.op.get_attr
    plain = attribute("data_format") == b"NHWC" and attribute("padding") != b"EXPLICIT"
    # Rows and columns that strides leave out would have to be cut out first, which takes longer.
    dense = plain and set(attribute("strides")) == {1}
    is_pointwise = narrow.shape[:2] == (1, 1) and narrow.shape[2] == inputs.shape[3]
    return (inputs, upstream) if dense and is_pointwise else None


def _product(left: tf.Tensor, right: tf.Tensor, *, like: tf.Tensor) -> tf.Tensor:
    """Returns `left` transposed times `right`, pixels in rows, of the shape and dtype of `like`."""
    rows = [tf.reshape(side, [-1, side.shape[-1]]) for side in (left, right)]
    product = tf.linalg.matmul(*rows, transpose_a=True)
    return tf.cast(tf.reshape(product, like.shape), like.dtype)
