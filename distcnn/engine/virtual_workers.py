"""Virtual workers: a step that depends on the number of shards, not on who computes them.

A batch is divided into the same shards for any number of replicas, each of which computes some of
them one after the other. What they compute is added in the order of `ShardTree`: a replica adds up
subtrees of its own shards, and the rest of the tree is added from what all replicas have sent.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.buckets import in_buckets
from distcnn.engine.shard import Shard, cut_batch
from distcnn.engine.shard_tree import Node, ShardTree
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import all_layers
from distcnn.runtime.keras_steps import has_own_test_step, has_own_train_step


class VirtualWorkers:
    """Divides the shards of a batch among the replicas, and adds what they compute.

    Args:
        count: Number of shards of a batch.
        backend: Runs the replicas.

    Attributes:
        count: Number of shards of a batch.
        per_replica: How many of them each replica computes.

    Raises:
        UsageError: If the shards cannot be divided evenly.
    """

    def __init__(self, count: int, backend: Backend) -> None:
        if count % backend.replicas:
            raise UsageError(
                f"virtual_workers is {count}, but there are {backend.replicas} workers; "
                f"expected a multiple of {backend.replicas}, and of every other number of workers "
                "with which the run goes on"
            )
        self.count = count
        self.per_replica = count // backend.replicas
        self._backend = backend
        self._tree = ShardTree(count)
        self._nodes = [
            self._tree.nodes_of(replica * self.per_replica, (replica + 1) * self.per_replica)
            for replica in range(backend.replicas)
        ]

    @property
    def is_first_replica(self) -> bool:
        """Whether this is the first replica of the run, inside `run`."""
        return self._replica() == 0

    def index(self, position: int) -> int:
        """Returns the number of a replica's shard by its position among its own, inside `run`."""
        return self._replica() * self.per_replica + position

    def cut(self, batch: Any) -> list[tuple[Any, Shard]]:
        """Returns the rows of a batch that belong to each shard of this replica, inside `run`.

        Args:
            batch: As for `cut_batch`.
        """
        parts = []
        for index in range(self.index(0), self.index(self.per_replica)):
            rows, shard = cut_batch(batch, index, self.count)
            parts.append((rows, dataclasses.replace(shard, index=index)))
        return parts

    def reduce(
        self,
        gradients: Sequence[Sequence[Any]],
        also: Sequence[Sequence[tf.Tensor]],
        computed: Sequence[Any],
    ) -> tuple[list[Any], list[tf.Tensor]]:
        """Sums gradients over all shards, inside `run`.

        Args:
            gradients: For each shard of the replica its gradients: tensors, `tf.IndexedSlices` or
                None, in the same order everywhere.
            also: For each of them tensors to sum with the gradients.
            computed: What the backward pass computed of the last shard, of which its gradients are
                made: it tells when.

        Returns:
            The gradients of the global batch, and the sums of `also`.
        """
        reduced: list[Any] = [None] * len(gradients[0])
        dense = []
        for i, gradient in enumerate(gradients[0]):
            if isinstance(gradient, tf.IndexedSlices):
                reduced[i] = self._joined([own[i] for own in gradients])
            elif gradient is not None:
                dense.append(i)
        by_shard = [[tf.convert_to_tensor(own[i]) for i in dense] for own in gradients]
        sums: list[tf.Tensor] = []
        made_of = [tf.convert_to_tensor(computed[i]) for i in dense]
        buckets = in_buckets(by_shard[-1], self._backend.bucket_bytes, made_of)
        for bucket in buckets:
            values = [[own[i] for i in bucket] for own in by_shard]
            if bucket is buckets[-1]:
                values = [[*own, *more] for own, more in zip(values, also, strict=True)]
            sums = self.sum(values)
            for i, total in zip(bucket, sums, strict=False):
                reduced[dense[i]] = total
        return reduced, sums[len(buckets[-1]) :]

    def sum(self, values: Sequence[Sequence[tf.Tensor]]) -> list[tf.Tensor]:
        """Sums tensors over all shards, inside `run`.

        Args:
            values: For each shard of the replica, in order, the same number of tensors of the same
                static shapes and types.

        Returns:
            The sums, the same on every replica and for any number of them; those of 16-bit types
            are added in float32.
        """
        replica, first = self._replica(), self.index(0)
        most = max(map(len, self._nodes))
        groups = []
        for tensors in zip(*values, strict=True):
            own: dict[Node, tf.Tensor]
            own = {(first + k, first + k + 1): _wide(tensor) for k, tensor in enumerate(tensors)}
            partial = [self._tree.add(own, node) for node in self._nodes[replica]]
            partial += [tf.zeros_like(partial[0])] * (most - len(partial))
            groups.append([tf.reshape(tensor, [-1]) for tensor in partial])
        sums = self._backend.combine(groups, self._add_replicas)
        pairs = zip(sums, values[0], strict=True)
        return [tf.cast(tf.reshape(total, one.shape), one.dtype) for total, one in pairs]

    def _add_replicas(self, sums: Sequence[Sequence[tf.Tensor]]) -> tf.Tensor:
        """Adds the sums of each replica's subtrees, and maybe others that fill up their number."""
        values: dict[Node, tf.Tensor] = {}
        for nodes, of_replica in zip(self._nodes, sums, strict=True):
            values |= dict(zip(nodes, of_replica, strict=False))
        return self._tree.add(values)

    def _joined(self, gradients: Sequence[tf.IndexedSlices]) -> tf.IndexedSlices:
        """Joins the rows of all shards in order, as `GradientReduction` does; none are added."""
        own = [
            tf.concat([tf.convert_to_tensor(gradient.values) for gradient in gradients], 0),
            tf.concat([gradient.indices for gradient in gradients], 0),
        ]
        values, indices = self._backend.gather_rows(own)
        return tf.IndexedSlices(values, indices, gradients[0].dense_shape)

    def _replica(self) -> int:
        """Returns the number of this replica, which is known while the step is traced."""
        if self._backend.local_replicas == 1:
            return self._backend.rank
        number = self._backend.replica_id()
        return int(tf.get_static_value(number) if tf.is_tensor(number) else number)


def _wide(tensor: tf.Tensor) -> tf.Tensor:
    is_half = tensor.dtype in (tf.float16, tf.bfloat16)
    return tf.cast(tensor, tf.float32) if is_half else tensor


def require_divisible(model: keras.Model, count: int) -> None:
    """Checks that the steps of a model can be computed shard by shard.

    Args:
        model: The model.
        count: Number of shards of a batch.

    Raises:
        UsageError: If a step of the model's own computes a whole batch, or a layer normalises over
            all shards.
    """
    for name, is_own in (
        ("train_step", has_own_train_step(model)),
        ("test_step", has_own_test_step(model)),
    ):
        if is_own:
            raise UsageError(
                f"virtual_workers is {count}, but the model overrides {name}, which computes a "
                "whole batch; drop virtual_workers"
            )
    for layer in all_layers(model):
        if isinstance(layer, keras.layers.BatchNormalization) and layer.synchronized:
            raise UsageError(
                f"virtual_workers is {count}, but {layer.name} is built with synchronized=True, "
                "and would normalise over all shards at once; build it without, or drop "
                "virtual_workers"
            )
