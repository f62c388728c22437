"""The order in which the sums of shards are added."""

import numpy as np
import pytest
import tensorflow as tf

from distcnn.engine.shard_tree import ShardTree


def text(first: int, end: int) -> str:
    """The brackets of a tree, written down from its definition."""
    if end - first == 1:
        return str(first)
    middle = first + max(2**k for k in range(12) if 2**k < end - first)
    return f"({text(first, middle)}+{text(middle, end)})"


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 12, 64])
def test_any_division_among_workers_adds_in_one_order(count, monkeypatch):
    monkeypatch.setattr("distcnn.engine.shard_tree._sum", lambda a, b: f"({a}+{b})")
    tree = ShardTree(count)
    for workers in (n for n in range(1, count + 1) if count % n == 0):
        values = {}
        for worker in range(workers):
            own = range(worker * count // workers, (worker + 1) * count // workers)
            leaves = {(shard, shard + 1): str(shard) for shard in own}
            for node in tree.nodes_of(own.start, own.stop):
                values[node] = tree.add(leaves, node)
        assert tree.add(values) == text(0, count)
        if count == 64:
            assert len(values) == workers  # a worker sends a single sum


def test_tensorflow_keeps_the_order():
    """Its optimizer of graphs would make one sum of eight terms of the additions."""
    random = np.random.default_rng(1)
    terms = [tf.Variable(random.normal(size=999).astype(np.float32)) for _ in range(8)]
    values = [term.numpy() for term in terms]

    @tf.function
    def total() -> tf.Tensor:
        return ShardTree(8).add({(i, i + 1): term + 0.5 for i, term in enumerate(terms)})

    halves = [value + np.float32(0.5) for value in values]
    pairs = [halves[i] + halves[i + 1] for i in range(0, 8, 2)]
    np.testing.assert_array_equal(total(), (pairs[0] + pairs[1]) + (pairs[2] + pairs[3]))
