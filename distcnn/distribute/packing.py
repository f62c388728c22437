"""Tensors as they travel between processes: packed, and in as few bytes as they came from."""

from collections.abc import Callable, Sequence

import tensorflow as tf

SMALL_ELEMENTS = 4096
"""Tensors of up to this many elements are never sent alone."""


def pack(
    tensors: Sequence[tf.Tensor], *, small: float = SMALL_ELEMENTS
) -> tuple[list[tf.Tensor], Callable[[list[tf.Tensor]], list[tf.Tensor]]]:
    """Concatenates small tensors of the same type, to save the operations that each one costs.

    Args:
        tensors: Tensors of static shapes.
        small: Largest number of elements of a tensor that is concatenated with others.

    Returns:
        The large tensors and the concatenated ones, and a function that unpacks such a list.
    """
    groups: dict[tuple[str, int | None], list[int]] = {}
    for index, tensor in enumerate(tensors):
        alone = None if tensor.shape.num_elements() <= small else index
        groups.setdefault((tensor.dtype.name, alone), []).append(index)
    packed = [
        tf.concat([tf.reshape(tensors[index], [-1]) for index in group], 0)
        if len(group) > 1
        else tensors[group[0]]
        for group in groups.values()
    ]

    def unpack(totals: list[tf.Tensor]) -> list[tf.Tensor]:
        unpacked = dict.fromkeys(range(len(tensors)))
        for group, total in zip(groups.values(), totals, strict=True):
            sizes = [tensors[index].shape.num_elements() for index in group]
            parts = tf.split(total, sizes) if len(group) > 1 else [total]
            for index, part in zip(group, parts, strict=True):
                unpacked[index] = tf.reshape(part, tensors[index].shape)
        return list(unpacked.values())

    return packed, unpack


def sum_over_processes(gathered: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Sums the tensors of all processes in rank order, 16-bit types in float32."""
    sums = []
    for parts in zip(*gathered, strict=True):
        sum_dtype = tf.float32 if parts[0].dtype.size == 2 else parts[0].dtype
        sums.append(tf.add_n([tf.cast(part, sum_dtype) for part in parts]))
    return sums


def undo_upcast(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bfloat16 tensor that a float32 tensor was cast from, else the tensor itself."""
    if tf.executing_eagerly() or tensor.dtype != tf.float32 or tensor.op.type != "Cast":
        return tensor
    origin = tensor.op.inputs[0]
    return origin if origin.dtype == tf.bfloat16 else tensor


def to_bits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bits of a tensor as a vector of 16-bit integers."""
    return tf.reshape(tf.bitcast(tensor, tf.uint16), [-1])


def from_bits(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the vector whose bits `to_bits` returned."""
    return tf.bitcast(tf.reshape(bits, [-1, dtype.size // 2] if dtype.size > 2 else [-1]), dtype)
