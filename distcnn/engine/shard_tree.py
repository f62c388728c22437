"""The order in which what the shards of a batch have computed is added: one tree, however spread.

Sums of floating-point numbers depend on their order. Here it depends on the number of shards alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import tensorflow as tf

Node = tuple[int, int]
"""A subtree: its first shard, and the first shard after its last."""


@dataclass(frozen=True)
class ShardTree:
    """A binary tree over shards, the same for any number of workers.

    A node of n shards has two children: the first p of them, where p is the largest power of two
    below n, and the rest. So each worker can add up subtrees of the shards that are its own.

    Attributes:
        count: Number of shards.
    """

    count: int

    def nodes_of(self, first: int, end: int) -> list[Node]:
        """Returns the largest subtrees that consist of shards `first` to `end` (exclusive)."""
        return self._nodes((0, self.count), first, end)

    def add(self, values: Mapping[Node, tf.Tensor], node: Node | None = None) -> tf.Tensor:
        """Returns the sum of a subtree.

        Args:
            values: Tensors of the same static shape, whose nodes make up the subtree.
            node: The subtree; by default the whole tree.
        """
        node = node or (0, self.count)
        if node in values:
            return values[node]
        left, right = _children(node)
        return _sum(self.add(values, left), self.add(values, right))

    def _nodes(self, node: Node, first: int, end: int) -> list[Node]:
        if end <= node[0] or node[1] <= first:
            return []
        if first <= node[0] and node[1] <= end:
            return [node]
        left, right = _children(node)
        return [*self._nodes(left, first, end), *self._nodes(right, first, end)]


def _children(node: Node) -> tuple[Node, Node]:
    first, end = node
    middle = first + (1 << (end - first - 1).bit_length() - 1)
    return (first, middle), (middle, end)


def _sum(left: tf.Tensor, right: tf.Tensor) -> tf.Tensor:
    return kept_apart(kept_apart(left) + kept_apart(right))


def kept_apart(tensor: tf.Tensor) -> tf.Tensor:
    """Returns a tensor whose computation TensorFlow does not merge with what it is used for.

    Its optimizer of graphs would turn a tree of additions into one that adds in another order.
    """
    return tf.ensure_shape(tensor, tensor.shape)
