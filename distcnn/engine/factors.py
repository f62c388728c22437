"""Gradients that travel as the few rows whose product they are.

The gradient of a dense layer's kernel is the product of the layer's inputs and of the gradients of
its outputs: one row of each per example. Where these are smaller than the kernel, every replica
gets the rows of all others and multiplies them itself: "sufficient factor broadcasting" (Xie et
al. 2015, "Distributed Machine Learning via Sufficient Factor Broadcasting", arXiv:1511.08486). The
sum over the replicas is then computed as one device computes it of the whole batch.
"""

from typing import NamedTuple

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.packing import undo_upcast
from distcnn.engine.shard import Shard

_MOST_FOREIGN_ROWS = 256
"""Up to this many rows of other replicas are multiplied. On one core, more take longer than what a
sum of the products costs there."""

_LEAST_BYTES = 2**17
"""Smaller gradients travel with others, in one message."""


class Factors(NamedTuple):
    """Two matrices whose product, `left` transposed times `right`, is a gradient.

    Attributes:
        left: Tensor of shape `(examples, inputs)`.
        right: Tensor of shape `(examples, outputs)` and of the same type.
        rows: The most examples that a replica has.
    """

    left: tf.Tensor
    right: tf.Tensor
    rows: int

    def counted(self, shard: Shard) -> "Factors":
        """Returns the factors of what counts: zeros if no row of the shard does."""
        return Factors(shard.counted(self.left), shard.counted(self.right), self.rows)

    def multiplied(self, backend: Backend) -> tf.Tensor:
        """Returns the product over the rows of all replicas: the sum of their gradients."""
        (joined,) = backend.gather_rows([self._filled_up()], equal=True)
        widths = [self.left.shape[1], self.right.shape[1]]
        left, right = tf.split(tf.reshape(joined, [-1, sum(widths)]), widths, 1)
        return tf.linalg.matmul(left, right, transpose_a=True)

    def _filled_up(self) -> tf.Tensor:
        """Returns both matrices, side by side, of as many rows as every replica sends."""
        own = tf.concat([self.left, self.right], 1)
        if own.shape[0] == self.rows:
            return own
        missing = self.rows - tf.shape(own)[0]
        return tf.ensure_shape(tf.pad(own, [[0, missing], [0, 0]]), [self.rows, own.shape[1]])


def factors_of(gradient: tf.Tensor, rows: int, wire: tf.DType, replicas: int) -> Factors | None:
    """Returns the factors of a gradient that the graph computes as their product.

    Every replica has to come to the same result. So it depends on nothing that may differ between
    them, such as the number of rows that one of them has.

    Args:
        gradient: What the backward pass computed.
        rows: The most examples that a replica has.
        wire: The type in which the gradient would travel itself.
        replicas: Number of replicas.

    Returns:
        None if the gradient is no such product of one row per example, or takes no longer than its
        factors.
    """
    product = undo_upcast(gradient)
    if tf.executing_eagerly() or product.op.type != "MatMul":
        return None
    if not product.op.get_attr("transpose_a") or product.op.get_attr("transpose_b"):
        return None
    left, right = product.op.inputs
    widths = [left.shape[1], right.shape[1]]
    if None in widths or not all(_has_a_row_per_example(side, rows) for side in (left, right)):
        return None
    # Each replica gets the rows of all others. A ring moves 2 (N - 1) / N of the gradient.
    gathered = replicas * rows * sum(widths) * left.dtype.size // 2
    whole = widths[0] * widths[1] * wire.size
    few = rows * (replicas - 1) <= _MOST_FOREIGN_ROWS and 2 * gathered <= whole
    return Factors(left, right, rows) if few and whole >= _LEAST_BYTES else None


def _has_a_row_per_example(factor: tf.Tensor, examples: int) -> bool:
    """Returns whether a factor has no more rows than examples, as far as the graph tells.

    A layer on sequences has a row for each of their elements.
    """
    if factor.shape[0] is not None:
        return factor.shape[0] <= examples
    while factor.op.type in ("Cast", "Identity"):
        (factor,) = factor.op.inputs
    if factor.op.type != "Reshape":
        return True
    inner = factor.op.inputs[0].shape
    return inner.rank is not None and inner[1:].num_elements() == factor.shape[1]
