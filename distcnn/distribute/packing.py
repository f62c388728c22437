"""Tensors as they travel between processes: packed, and in as few bytes as they came from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import tensorflow as tf

SMALL_ELEMENTS = 4096
"""Tensors of up to this many elements are never sent alone."""

SHORT_MESSAGE_BYTES = 2**20
"""A copy of so many bytes takes less time than another round of messages."""

_LARGE_ELEMENTS = 2**18
"""16-bit tensors of this many elements are summed by XLA."""


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


def packed_sum(
    tensors: Sequence[tf.Tensor],
    total: Callable[[list[tf.Tensor]], list[tf.Tensor]],
    again: Callable[[Sequence[tf.Tensor]], list[tf.Tensor]],
    *,
    small: float = math.inf,
) -> list[tf.Tensor]:
    """Sums tensors over the processes by a function that TensorFlow cannot differentiate.

    Args:
        tensors: Tensors of static shapes.
        total: Sums packed tensors over the processes.
        again: Sums the gradients of the results, which makes them those of the tensors.
        small: As `pack` takes it.
    """

    @tf.custom_gradient
    def add(*own: tf.Tensor) -> Any:
        packed, unpack = pack(own, small=small)

        def gradient(*upstream: tf.Tensor) -> list[tf.Tensor]:
            reduced = again(upstream)
            return [tf.cast(g, t.dtype) for g, t in zip(reduced, own, strict=True)]

        return unpack(total(packed)), gradient

    return list(add(*tensors)) if tensors else []


def sum_over_processes(gathered: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
    """Sums the tensors of all processes in rank order, 16-bit types in float32."""
    return [
        _sum_at_once(parts) if _is_large(parts[0]) else _sum_in_float32(parts)
        for parts in zip(*gathered, strict=True)
    ]


def _is_large(tensor: tf.Tensor) -> bool:
    """Returns whether a pass over a 16-bit tensor takes longer than to start a compiled one."""
    elements = tensor.shape.num_elements() or 0
    return bool(tensor.dtype.size == 2 and elements >= _LARGE_ELEMENTS)


def _sum_in_float32(parts: Sequence[tf.Tensor]) -> tf.Tensor:
    sum_dtype = tf.float32 if parts[0].dtype.size == 2 else parts[0].dtype
    return tf.add_n([tf.cast(part, sum_dtype) for part in parts])


# One pass over the memory, where casts and a sum take one each.
_sum_at_once = tf.function(_sum_in_float32, jit_compile=True, autograph=False)


def undo_upcast(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bfloat16 tensor that a float32 tensor was cast from, else the tensor itself."""
    if tf.executing_eagerly() or tensor.dtype != tf.float32 or tensor.op.type != "Cast":
        return tensor
    origin = tensor.op.inputs[0]
    return origin if origin.dtype == tf.bfloat16 else tensor


def as_message(
    tensors: Sequence[tf.Tensor],
) -> tuple[tf.Tensor, Callable[[tf.Tensor], list[tf.Tensor]]]:
    """Joins the bits of tensors of static shapes.

    Returns:
        A vector of 16-bit integers, and a function that reads the tensors from such a vector.
    """
    bits = [to_bits(tensor) for tensor in tensors]
    lengths = [part.shape[0] for part in bits]

    def read(message: tf.Tensor) -> list[tf.Tensor]:
        parts = tf.split(message, lengths) if len(lengths) > 1 else [message]
        return [
            tf.reshape(from_bits(part, tensor.dtype), tensor.shape)
            for part, tensor in zip(parts, tensors, strict=True)
        ]

    return tf.concat(bits, 0) if len(bits) > 1 else bits[0], read


def to_bits(tensor: tf.Tensor) -> tf.Tensor:
    """Returns the bits of a tensor as a vector of 16-bit integers."""
    return tf.reshape(tf.bitcast(tensor, tf.uint16), [-1])


def from_bits(bits: tf.Tensor, dtype: tf.DType) -> tf.Tensor:
    """Returns the vector whose bits `to_bits` returned."""
    return tf.bitcast(tf.reshape(bits, [-1, dtype.size // 2] if dtype.size > 2 else [-1]), dtype)
