"""What a step changes besides the weights, where a worker computes several shards in turn."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from distcnn.engine.shard import Shard
from distcnn.engine.shard_tree import kept_apart
from distcnn.errors import UsageError


class ShardState:
    """Variables that every shard of a step changes from the same start.

    Metrics count the shard alone, from zero. Moving statistics and other float variables change
    from what they were before the step; the step changes them by the mean over all shards. Of other
    variables, such as the state of random numbers, each shard makes the same.

    Args:
        metrics: The variables of the model's metrics.
        others: What else a step may change.
    """

    def __init__(self, metrics: Sequence[Any], others: Sequence[Any]) -> None:
        self._metrics = list(metrics)
        counted = {id(variable) for variable in metrics}
        self._others = {id(v): v for v in others if id(v) not in counted}
        every = [*self._metrics, *self._others.values()]
        self._start = {id(v): tf.identity(tf.convert_to_tensor(v.value)) for v in every}
        self._changed: list[Any] = []
        self._after_first: list[tf.Tensor] = []
        self.parts: list[list[tf.Tensor]] = []

    @contextlib.contextmanager
    def updating(self, shard: Shard) -> Iterator[None]:
        """Lets a shard, which the model computes in the context, change the variables.

        Raises:
            UsageError: If it changes variables that do not belong to the model.
        """
        for variable in self._metrics:
            variable.assign(tf.zeros_like(self._start[id(variable)]))
        for variable in self._changed:
            variable.assign(self._start[id(variable)])
        yield
        if not self.parts:
            self._changed = self._find_changed(shard)
            self._after_first = [tf.convert_to_tensor(v.value) for v in self._changed]
        part = [tf.convert_to_tensor(variable.value) for variable in self._metrics]
        for variable in self._changed:
            if _is_float(variable):
                change = tf.convert_to_tensor(variable.value) - self._start[id(variable)]
                part.append(kept_apart(change))
        self.parts.append([shard.counted(value) for value in part])

    def assign(self, sums: Sequence[tf.Tensor], shards: int, *, is_first: bool) -> None:
        """Gives the variables their values after the step.

        Args:
            sums: The sums over all shards of what `parts` has for each of the worker's own.
            shards: Number of shards.
            is_first: Whether this is the first replica, which alone counts in the metrics, since
                they are added up over the replicas where they are read.
        """
        rest = iter(sums)
        # Not a constant: folding it would give ranks other graphs, and Horovod, which takes its
        # names from them, would wait for ever.
        counts = tf.raw_ops.PlaceholderWithDefault(input=is_first, shape=[])
        # Replicas that ignore the sums must take part in adding them, or the first one waits.
        with tf.control_dependencies(list(sums)):
            for variable in self._metrics:
                total = self._start[id(variable)] + next(rest)
                variable.assign(tf.where(counts, total, tf.zeros_like(total)))
        for variable, after_first in zip(self._changed, self._after_first, strict=True):
            if _is_float(variable):
                start = self._start[id(variable)]
                variable.assign(start + next(rest) / tf.cast(shards, start.dtype))
            else:
                variable.assign(after_first)

    def _find_changed(self, shard: Shard) -> list[Any]:
        known = self._others | {id(variable): variable for variable in self._metrics}
        for key, variable in shard.changed.items():
            if key not in known:
                raise UsageError(
                    f"virtual_workers is set, but the step changes the variable "
                    f"{getattr(variable, 'path', variable)}, which is no variable of the model; "
                    "give layers that draw random numbers a keras.random.SeedGenerator of their "
                    "own, or drop virtual_workers"
                )
        return [variable for key, variable in self._others.items() if key in shard.changed]


def _is_float(variable: Any) -> bool:
    return bool(tf.as_dtype(variable.dtype).is_floating)
