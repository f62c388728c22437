"""The part of a batch that one replica computes, and the weight of what it computes.

Every rank runs the whole script, so every rank has the whole batch. Each replica takes its rows by
position. What it computes of its rows counts by their fraction of the batch, so that the sum over
the replicas is what one device computes of the whole batch.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import keras
import tensorflow as tf

from distcnn.errors import DataError

_current = threading.local()


@dataclass(frozen=True)
class Shard:
    """The rows of a batch that this replica computes.

    Attributes:
        rows: How many rows count; an integer or an int32 scalar. If there are fewer rows than
            replicas, some replicas compute a row that does not count: `rows` is 0 there.
        total: How many rows the batch has.
        may_be_empty: Whether `rows` can be 0.
        before: Values of variables before the step, by the variable's id; filled if the shard may
            be empty.
    """

    rows: Any
    total: Any
    may_be_empty: bool
    before: dict[int, tuple[Any, tf.Tensor]] = field(default_factory=dict)

    @property
    def weight(self) -> tf.Tensor:
        """The fraction of the batch's rows that are this replica's: a float32 scalar."""
        return tf.cast(self.rows, tf.float32) / tf.cast(self.total, tf.float32)

    @property
    def inverse_weight(self) -> tf.Tensor:
        """1 / weight, or a finite number where no row counts: a float32 scalar."""
        return tf.cast(self.total, tf.float32) / tf.cast(tf.maximum(self.rows, 1), tf.float32)

    def value(self, variable: Any) -> tf.Tensor:
        """Returns what a variable holds after this step: its value before if no row counts."""
        value = tf.convert_to_tensor(variable.value)
        if not self.may_be_empty:
            return value
        _, before = self.before.get(id(variable), (variable, tf.zeros_like(value)))
        return tf.where(tf.equal(self.rows, 0), before, value)

    def restore(self) -> None:
        """Puts back what the step has changed, other than the weights, if no row counts."""
        for variable, _ in self.before.values():
            variable.assign(self.value(variable))


def current_shard() -> Shard | None:
    """Returns the shard that this replica computes, or None outside a step."""
    return getattr(_current, "shard", None)


@contextmanager
def computing(shard: Shard) -> Iterator[None]:
    """Makes a shard the current one in the context."""
    outer = current_shard()
    _current.shard = shard
    try:
        yield
    finally:
        _current.shard = outer


def cut_batch(batch: Any, replica_id: Any, replicas: int) -> tuple[Any, Shard]:
    """Returns a replica's rows of a batch.

    Args:
        batch: Nested tensors or arrays, whose first axis counts the examples; None and scalars are
            kept as they are.
        replica_id: The replica: an integer or an int32 scalar.
        replicas: Number of replicas.

    Returns:
        The same structure with this replica's rows, and what is known of them.

    Raises:
        DataError: If the parts of the batch have different numbers of rows.
    """
    tensors = [t for t in map(_as_tensor, keras.tree.flatten(batch)) if _has_rows(t)]
    if not tensors:
        raise DataError(f"a batch is {batch!r}; expected tensors whose first axis counts examples")
    static = _static_rows(tensors)
    total: Any = static if static is not None else _rows(tensors[0])
    checks = [] if static is not None else [_same_rows(t, total) for t in tensors[1:]]
    with tf.control_dependencies(checks):
        start, end = replica_id * total // replicas, (replica_id + 1) * total // replicas
        may_be_empty = static is None or static < replicas
        first, last = start, end
        if may_be_empty:
            first = tf.minimum(start, total - 1)
            last = tf.maximum(end, first + 1)
        cut = keras.tree.map_structure(_cutter(first, last), batch)
    return cut, Shard(end - start, total, may_be_empty)


def _cutter(first: Any, last: Any) -> Callable[[Any], Any]:
    def cut(part: Any) -> Any:
        part = _as_tensor(part)
        if not _has_rows(part):
            return part
        if isinstance(part, tf.SparseTensor):
            rest = [0] * (part.shape.rank - 1)
            start = tf.cast(tf.stack([first, *rest]), tf.int64)
            size = tf.concat([[tf.cast(last - first, tf.int64)], part.dense_shape[1:]], 0)
            return tf.sparse.slice(part, start, size)
        return part[first:last]

    return cut


def _as_tensor(part: Any) -> Any:
    known = (tf.Tensor, tf.SparseTensor, tf.RaggedTensor, type(None))
    return part if isinstance(part, known) else tf.convert_to_tensor(part)


def _has_rows(part: Any) -> bool:
    return part is not None and (part.shape.rank is None or part.shape.rank > 0)


def _rows(part: Any) -> tf.Tensor:
    if isinstance(part, tf.SparseTensor):
        return tf.cast(part.dense_shape[0], tf.int32)
    if isinstance(part, tf.RaggedTensor):
        return tf.cast(part.nrows(), tf.int32)
    return tf.shape(part)[0]


def _static_rows(parts: list[Any]) -> int | None:
    known = {part.shape[0] for part in parts if part.shape.rank is not None}
    if len(known - {None}) > 1:
        raise DataError(
            f"the parts of a batch have {' and '.join(map(str, sorted(known - {None})))} rows, so "
            "it cannot be divided by examples; expected the same number in every input and target"
        )
    return None if None in known or len(known) != 1 else next(iter(known))


def _same_rows(part: Any, total: tf.Tensor) -> tf.Operation:
    message = "the parts of a batch have different numbers of rows"
    return tf.debugging.assert_equal(_rows(part), total, message)
