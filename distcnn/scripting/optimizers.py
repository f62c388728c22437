"""Reduces gradients where a script's optimizer takes them, whatever code computed them.

Keras' own training step, an overridden one, several optimizers and loops with `GradientTape` all
end in `Optimizer.apply`. Gradients are reduced there first, then checked, clipped, accumulated and
applied, so that every rank takes the same decisions.
"""

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.runtime.keras_hooks import APPLY, APPLY_SCALED, REDUCE_GRADIENTS, Hooks
from distcnn.scripting.shard import current_shard


class GradientReduction:
    """Sums gradients over the replicas before an optimizer applies them.

    Args:
        backend: Sums over the replicas.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._inner: set[int] = set()
        self._of_thread = threading.local()

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
            if id(optimizer) not in self._inner:
                grads = self.reduce(grads)
            return original(optimizer, grads, trainable_variables)

        return apply

    @contextlib.contextmanager
    def of_weighted_loss(self) -> Iterator[None]:
        """Takes gradients in the context as those of a loss that had its weight already."""
        self._of_thread.weighted = True
        try:
            yield
        finally:
            self._of_thread.weighted = False

    def reduce(self, gradients: Sequence[Any]) -> list[Any]:
        """Returns the gradients of the global batch.

        Inside a step a gradient counts by the shard's fraction of the batch; outside, in a loop of
        the user's own, gradients are averaged over the processes.

        Args:
            gradients: Tensors, `tf.IndexedSlices` or None, in the same order on every replica.
        """
        used = [index for index, gradient in enumerate(gradients) if gradient is not None]
        own = [tf.convert_to_tensor(gradients[index]) for index in used]
        shard = current_shard()
        if shard is None:
            sums = self._average(own)
        else:
            if not getattr(self._of_thread, "weighted", False):
                own = [gradient * tf.cast(shard.weight, gradient.dtype) for gradient in own]
            if shard.may_be_empty:  # a row that does not count may still give NaN
                own = [tf.where(tf.equal(shard.rows, 0), 0.0, gradient) for gradient in own]
            sums = self._backend.reduce_sum(own, compressible=len(own))
        reduced: list[Any] = [None] * len(gradients)
        for index, total in zip(used, sums, strict=True):
            reduced[index] = total
        return reduced

    def _average(self, own: list[tf.Tensor]) -> list[tf.Tensor]:
        backend = self._backend
        if backend.size == 1 or not own:
            return own
        if not tf.distribute.in_cross_replica_context():
            return backend.reduce_sum([gradient / backend.replicas for gradient in own])

        def in_replica(*gradients: tf.Tensor) -> tuple[tf.Tensor, ...]:
            return tuple(backend.reduce_sum([g / backend.replicas for g in gradients]))

        return list(backend.run(in_replica, *own)[0])
