"""Divides gradients into buckets, each of which is reduced as soon as the backward pass has it."""

from collections.abc import Sequence

import tensorflow as tf

_SMALL = 1 / 128
"""Gradients below this fraction of a bucket wait for the last one: while the model computes, each
message takes longer than what a small one would gain."""


def in_buckets(
    gradients: Sequence[tf.Tensor], limit: int, computed: Sequence[tf.Tensor] | None = None
) -> list[list[int]]:
    """Divides gradients into buckets, in the order in which the backward pass computes them.

    A gradient that reaches the limit has a bucket of its own, so that it need not be copied.

    Args:
        gradients: The gradients of a model, in the order of its variables.
        limit: Bytes of a bucket; 0 for a single one.
        computed: What the backward pass computed, if the gradients were made of it afterwards.

    Returns:
        Indices of the gradients of each bucket, at least one; the same in every process.
    """
    buckets: list[list[int]] = []
    current: list[int] = []
    small: list[int] = []
    size = 0
    for index in _as_computed(gradients if computed is None else computed):
        own = (gradients[index].shape.num_elements() or 0) * gradients[index].dtype.size
        if limit and own >= limit:
            buckets.append([index])
            continue
        if limit and own < _SMALL * limit:
            small.append(index)
            continue
        if limit and current and size + own > limit:
            buckets.append(current)
            current, size = [], 0
        current.append(index)
        size += own
    return [*buckets, [*current, *small]]


def _as_computed(gradients: Sequence[tf.Tensor]) -> list[int]:
    """Returns the indices of gradients by the place of their operations in the graph.

    Those of a single operation, such as a function that XLA compiled, come in the order of its
    results. Eager tensors come in the reverse order of the variables: the backward pass begins with
    the last layer.
    """
    last_first = list(reversed(range(len(gradients))))
    if tf.executing_eagerly() or not gradients:
        return last_first
    operations = gradients[0].graph.get_operations()
    places = {id(operation): place for place, operation in enumerate(operations)}

    def place(index: int) -> tuple[int, int]:
        gradient = gradients[index]
        return places.get(id(gradient.op), 0), gradient.value_index

    return sorted(last_first, key=place)
