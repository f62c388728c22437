"""Reduces gradients where a script's optimizer takes them, whatever code computed them.

Keras' own training step, an overridden one, several optimizers and loops with `GradientTape` all
end in `Optimizer.apply`. Gradients are reduced there first, then checked, clipped, accumulated and
applied, so that every rank takes the same decisions.
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.buckets import in_buckets
from distcnn.engine.factors import Factors, factors_of
from distcnn.engine.shard import Shard, current_shard
from distcnn.runtime.keras_hooks import APPLY, APPLY_SCALED, REDUCE_GRADIENTS, Hooks


class GradientReduction:
    """Sums gradients over the replicas before an optimizer applies them.

    Args:
        backend: Sums over the replicas.
        shard_rows: The most rows of a shard, if that is known before the step.
    """

    def __init__(self, backend: Backend, shard_rows: int | None = None) -> None:
        self._backend = backend
        self._shard_rows = shard_rows
        self._inner: set[int] = set()
        self._of_thread = threading.local()
        self._found: dict[int, Any] | None = None

    def install(self, hooks: Hooks) -> None:
        """Makes Keras' optimizers apply reduced gradients."""
        hooks.replace(APPLY_SCALED, self._reducing)
        hooks.replace(APPLY, self._reducing)
        hooks.replace(REDUCE_GRADIENTS, lambda original: lambda optimizer, pairs: list(pairs))

    def _reducing(self, original: Any) -> Any:
        def apply(optimizer: Any, grads: Any, trainable_variables: Any = None) -> Any:
            # The inner optimizer of a LossScaleOptimizer gets what the outer one has reduced.
            inner = getattr(optimizer, "inner_optimizer", None)
            if inner is not None:
                self._inner.add(id(inner))
            grads = list(grads)
            if self._found is not None:
                variables = trainable_variables or optimizer.trainable_variables
                self._found[id(optimizer)] = (optimizer, list(variables))
                return None
            done = getattr(self._of_thread, "done", False)
            if id(optimizer) not in self._inner and not done:
                grads = self.reduce(grads)
            return original(optimizer, grads, trainable_variables)

        return apply

    def build_optimizers(self, step: Callable[[Any], Any], batch: Any) -> None:
        """Builds the optimizers that a step uses, without running it.

        Args:
            step: A model's own `train_step`.
            batch: Tensors, or their specifications.
        """
        backend, self._found = self._backend, {}
        try:
            tf.function(lambda rows: backend.run(step, rows)).get_concrete_function(batch)
            found = self._found
        finally:
            self._found = None
        for optimizer, variables in found.values():
            if not optimizer.built:
                optimizer.build(variables)

    @contextlib.contextmanager
    def already_done(self) -> Iterator[None]:
        """Makes optimizers apply the gradients that they are given in the context as they are."""
        self._of_thread.done = True
        try:
            yield
        finally:
            self._of_thread.done = False

    def reduce(self, gradients: Sequence[Any]) -> list[Any]:
        """Returns the gradients of the global batch.

        Inside a step a gradient counts by the shard's fraction of the batch; outside, in a loop of
        the user's own, gradients are averaged over the processes.

        Args:
            gradients: Tensors, `tf.IndexedSlices` or None, in the same order on every replica.
        """
        shard = current_shard()
        if shard is None:
            return _each_dense(gradients, self._average)
        weighted = [_weighted(gradient, shard) for gradient in gradients]
        return self.reduce_weighted(weighted, computed=gradients)[0]

    def factors(self, computed: Sequence[Any], shard: Shard) -> dict[int, Factors]:
        """Returns the factors of the gradients that travel as such, by index.

        Args:
            computed: The gradients of a shard as the backward pass computed them.
            shard: The shard.
        """
        replicas, rows = self._backend.replicas, self._shard_rows
        if rows is None and isinstance(shard.total, int):
            rows = -(-shard.total // replicas)
        found: dict[int, Factors] = {}
        if not self._backend.sends_factors or rows is None:
            return found
        for index, gradient in enumerate(computed):
            if tf.is_tensor(gradient):
                wire = self._backend.wire_type(gradient, compressible=True, replicas=replicas)
                factors = factors_of(gradient, rows, wire, replicas)
                if factors is not None:
                    found[index] = factors.counted(shard)
        return found

    def reduce_weighted(
        self,
        gradients: Sequence[Any],
        also: Sequence[tf.Tensor] = (),
        *,
        computed: Sequence[Any],
        factors: Mapping[int, Factors] | None = None,
    ) -> tuple[list[Any], list[tf.Tensor]]:
        """Sums gradients whose loss counted by the shard's fraction of the batch.

        Args:
            gradients: Tensors, `tf.IndexedSlices` or None, in the same order on every replica.
            also: Tensors to sum with them.
            computed: What the backward pass computed, of which the gradients are made: it tells
                when.
            factors: Factors of gradients that travel as such, by index.

        Returns:
            The gradients of the global batch, and the sums of `also`.
        """
        reduced: list[Any] = [None] * len(gradients)
        dense = []
        for i, gradient in enumerate(gradients):
            if factors and i in factors:
                reduced[i] = tf.cast(factors[i].multiplied(self._backend), gradient.dtype)
            elif isinstance(gradient, tf.IndexedSlices):
                reduced[i] = self._gathered(gradient)
            elif gradient is not None:
                dense.append(i)
        own = [tf.convert_to_tensor(gradients[i]) for i in dense]
        sums: list[tf.Tensor] = []
        made_of = [tf.convert_to_tensor(computed[i]) for i in dense]
        buckets = in_buckets(own, self._backend.bucket_bytes, made_of)
        for bucket in buckets:
            tensors = [own[i] for i in bucket] + list(also if bucket is buckets[-1] else ())
            sums = self._backend.reduce_sum(tensors, compressible=len(bucket))
            for i, total in zip(bucket, sums, strict=False):
                reduced[dense[i]] = total
        return reduced, sums[len(buckets[-1]) :]

    def _gathered(self, gradient: tf.IndexedSlices) -> tf.IndexedSlices:
        """Joins the rows of all replicas into what one device has.

        They are not added up: Keras' optimizers square rows of the same index one by one.
        """
        own = [tf.convert_to_tensor(gradient.values), gradient.indices]
        values, indices = self._backend.gather_rows(own)
        return tf.IndexedSlices(values, indices, gradient.dense_shape)

    def _average(self, own: list[tf.Tensor]) -> list[tf.Tensor]:
        backend = self._backend
        if backend.size == 1 or not own:
            return own
        if not tf.distribute.in_cross_replica_context():
            return backend.reduce_sum([gradient / backend.replicas for gradient in own])

        def in_replica(*gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(backend.reduce_sum([g / backend.replicas for g in gradients]))

        return list(backend.run(in_replica, *own)[0])


def _weighted(gradient: Any, shard: Shard) -> Any:
    """Returns a gradient that counts by the shard's fraction of the batch."""
    if gradient is None:
        return None
    if isinstance(gradient, tf.IndexedSlices):
        values = _weighted(gradient.values, shard)
        return tf.IndexedSlices(values, gradient.indices, gradient.dense_shape)
    gradient = tf.convert_to_tensor(gradient)
    return shard.counted(gradient * tf.cast(shard.weight, gradient.dtype))


def _each_dense(
    gradients: Sequence[Any], reduce: Callable[[list[tf.Tensor]], list[tf.Tensor]]
) -> list[Any]:
    """Applies a function to the gradients that there are, as dense tensors."""
    found = [i for i, gradient in enumerate(gradients) if gradient is not None]
    reduced: list[Any] = [None] * len(gradients)
    sums = reduce([tf.convert_to_tensor(gradients[i]) for i in found])
    for i, total in zip(found, sums, strict=True):
        reduced[i] = total
    return reduced
