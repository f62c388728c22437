"""The part of a batch that one replica computes, and the weight of what it computes.

Every rank runs the whole script, so every rank has the whole batch, unless its pipeline makes only
the rows of its own replicas (`WorkerRows`). Each replica takes its rows by position. What it
computes of its rows counts by their fraction of the batch, so that the sum over the replicas is
what one device computes of the whole batch.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import DataError

_current = threading.local()


@dataclass(frozen=True)
class Rider:
    """A tensor that is summed over the replicas with the next reduction.

    Attributes:
        own: This replica's tensor.
        take: Receives the sum.
    """

    own: tf.Tensor
    take: Callable[[tf.Tensor], None]


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
        riders: Small tensors that are summed over the replicas together with the metrics.
        index: Number of the shard, if there are virtual workers. Otherwise None: a replica has one
            shard at a time.
        changed: The variables that were assigned while the shard was computed, by id, if there are
            virtual workers.
    """

    rows: Any
    total: Any
    may_be_empty: bool
    before: dict[int, tuple[Any, tf.Tensor]] = field(default_factory=dict)
    riders: list[Rider] = field(default_factory=list)
    index: int | None = None
    changed: dict[int, Any] = field(default_factory=dict)

    @property
    def weight(self) -> tf.Tensor:
        """The fraction of the batch's rows that are this replica's: a float64 scalar."""
        return tf.cast(self.rows, tf.float64) / tf.cast(self.total, tf.float64)

    @property
    def inverse_weight(self) -> tf.Tensor:
        """1 / weight, or a finite number where no row counts: a float64 scalar."""
        return tf.cast(self.total, tf.float64) / tf.cast(tf.maximum(self.rows, 1), tf.float64)

    def value(self, variable: Any) -> tf.Tensor:
        """Returns what a variable holds after this step: its value before if no row counts."""
        value = tf.convert_to_tensor(variable.value)
        if not self.may_be_empty:
            return value
        _, before = self.before.get(id(variable), (variable, tf.zeros_like(value)))
        return tf.where(tf.equal(self.rows, 0), before, value)

    def counted(self, value: Any) -> Any:
        """Returns what was computed of the rows: zero if no row counts, which may have given NaN.

        Args:
            value: A tensor, `tf.IndexedSlices`, or None.
        """
        if value is None or not self.may_be_empty:
            return value
        if isinstance(value, tf.IndexedSlices):
            return tf.IndexedSlices(self.counted(value.values), value.indices, value.dense_shape)
        return tf.where(tf.equal(self.rows, 0), tf.zeros_like(value), value)

    def reduce_sum(self, backend: Backend, tensors: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        """Sums tensors over all replicas, and whatever else waits to be summed."""
        riders = self.riders[:]
        self.riders.clear()
        sums = backend.reduce_sum([*tensors, *(rider.own for rider in riders)])
        for rider, total in zip(riders, sums[len(tensors) :], strict=True):
            rider.take(total)
        return sums[: len(tensors)]

    def restore(self) -> None:
        """Puts back what the step has changed, other than the weights, if no row counts."""
        for variable, _ in self.before.values():
            variable.assign(self.value(variable))


class WorkerRows(NamedTuple):
    """A batch of which this process has only the rows of its own replicas.

    Attributes:
        rows: Nested tensors with these rows, or with one row that does not count if there are none.
        whole: A tensor without elements that has as many rows as the batch.
        before: A tensor without elements that has as many rows as precede this process's.
        digest: Four float32 numbers, which are the same in every process; see `BatchComparison`.
    """

    rows: Any
    whole: Any
    before: Any
    digest: Any


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
            kept as they are. Or this process's rows of them.
        replica_id: The replica: an integer or an int32 scalar.
        replicas: Number of replicas.

    Returns:
        The same structure with this replica's rows, and what is known of them.

    Raises:
        DataError: If nothing in the batch has rows.
    """
    if isinstance(batch, WorkerRows):
        return _cut_worker_rows(batch, replica_id, replicas)
    total = batch_rows(batch)
    may_be_empty = not isinstance(total, int) or total < replicas

    def cut(part: Any) -> Any:
        part = _as_tensor(part)
        if not _has_rows(part):
            return part
        # By the part's own rows: where their numbers differ, the loss fails as without distcnn.
        first, last = bounds(_rows(part), replica_id, replicas)
        if may_be_empty:
            first = tf.minimum(first, _rows(part) - 1)
            last = tf.maximum(last, first + 1)
        return _slice(part, first, last)

    first, last = bounds(total, replica_id, replicas)
    return keras.tree.map_structure(cut, batch), Shard(last - first, total, may_be_empty)


def _cut_worker_rows(batch: WorkerRows, replica_id: Any, replicas: int) -> tuple[Any, Shard]:
    total, before = _rows(batch.whole), _rows(batch.before)
    may_be_empty = not isinstance(total, int) or total < replicas
    first, last = bounds(total, replica_id, replicas)

    def cut(part: Any) -> Any:
        start, end = first - before, last - before
        if may_be_empty:
            start = tf.minimum(start, _rows(part) - 1)
            end = tf.maximum(end, start + 1)
        return part[start:end]

    return keras.tree.map_structure(cut, batch.rows), Shard(last - first, total, may_be_empty)


def batch_rows(batch: Any) -> Any:
    """Returns the number of rows of a batch: an integer where it is known, else an int32 scalar.

    Raises:
        DataError: If nothing in the batch has rows.
    """
    if isinstance(batch, WorkerRows):
        return _rows(batch.whole)
    tensors = [t for t in map(_as_tensor, keras.tree.flatten(batch)) if _has_rows(t)]
    if not tensors:
        raise DataError(f"a batch is {batch!r}; expected tensors whose first axis counts examples")
    return _rows(tensors[0])


def bounds(rows: Any, replica_id: Any, replicas: int) -> tuple[Any, Any]:
    """Returns the first row of a replica and the first row after its last."""
    return replica_id * rows // replicas, (replica_id + 1) * rows // replicas


def _slice(part: Any, first: Any, last: Any) -> Any:
    if isinstance(part, tf.SparseTensor):
        rest = [0] * (part.shape.rank - 1)
        start = tf.cast(tf.stack([first, *rest]), tf.int64)
        size = tf.concat([[tf.cast(last - first, tf.int64)], part.dense_shape[1:]], 0)
        return tf.sparse.slice(part, start, size)
    return part[first:last]


def _as_tensor(part: Any) -> Any:
    known = (tf.Tensor, tf.SparseTensor, tf.RaggedTensor, type(None))
    return part if isinstance(part, known) else tf.convert_to_tensor(part)


def _has_rows(part: Any) -> bool:
    return part is not None and (part.shape.rank is None or part.shape.rank > 0)


def _rows(part: Any) -> Any:
    """Returns the number of rows: an integer where it is known, else an int32 scalar."""
    if part.shape.rank is not None and part.shape[0] is not None:
        return part.shape[0]
    if isinstance(part, tf.SparseTensor):
        return tf.cast(part.dense_shape[0], tf.int32)
    if isinstance(part, tf.RaggedTensor):
        return tf.cast(part.nrows(), tf.int32)
    return tf.shape(part)[0]
