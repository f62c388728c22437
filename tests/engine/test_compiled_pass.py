"""A pass that XLA compiles in pieces computes what it computes without XLA."""

import logging

import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine.compiled_pass import CompiledPass
from distcnn.engine.graph_pieces import GraphPieces

X = np.random.default_rng(5).normal(size=(6, 4)).astype("float32")
ONE = tf.constant(1.0, tf.float64)


class Doubling(OneDevice):
    """The first of two replicas, which compute the same."""

    size = 2
    bucket_bytes = 20

    def reduce_sum(self, tensors, *, compressible=0):
        return [2 * tensor for tensor in tensors]


class Chain:
    """Outputs, loss and gradients of three layers, with something between the first and second."""

    def __init__(self, between):
        random = np.random.default_rng(7)
        self.layers = [tf.Variable(random.normal(size=(4, 4)), dtype=tf.float32) for _ in range(3)]
        self.seen = tf.Variable(3.0, trainable=False)
        self._between = between

    def __call__(self, inputs, weight):
        first, *others = self.layers
        with tf.GradientTape() as tape:
            outputs = self._between(self, inputs @ first)
            for layer in others:
                outputs = tf.tanh(outputs @ layer)
            loss = tf.reduce_mean(tf.square(outputs)) * tf.cast(weight, tf.float32)
        return outputs, loss, tape.gradient(loss, self.layers)


def state(chain, x):
    """Reads a variable before and after it changes."""
    before = x * chain.seen
    chain.seen.assign_add(2.0)
    return before / chain.seen


def shapes(_, x):
    """Computes with the number of rows, which only the step knows."""
    rows = tf.shape(x)[0]
    row = tf.reshape(tf.range(rows * 4), [rows, 4])
    return (x + tf.reduce_sum(x, 0)) * tf.cast(row % 3, x.dtype) / tf.cast(rows, x.dtype)


def loop(_, x):
    """Keeps what each round computes for the backward pass."""
    _, x = tf.while_loop(
        lambda i, _: i < 3, lambda i, x: (i + 1, tf.sin(x) + x), [0, x], maximum_iterations=3
    )
    return x


def reduced(_, x):
    total, count = BACKEND.sum_in_pass([tf.reduce_sum(tf.square(x), 0), tf.constant(3.0)])
    return x * count / total


def looped_and_reduced(chain, x):
    return reduced(chain, loop(chain, x))


BACKEND = Doubling()


def results(chain, function):
    """Computes two steps; returns what they give, and what they leave in the variable."""

    @tf.function(autograph=False, input_signature=[tf.TensorSpec([None, 4])])
    def step(x):
        return function(x, ONE)

    return tf.nest.flatten([step(X), step(X[:5]), chain.seen])


@pytest.mark.parametrize("between", [state, shapes, loop, reduced, looped_and_reduced])
def test_pieces_compute_what_the_whole_computes(between, monkeypatch, caplog):
    cut: list[GraphPieces] = []
    divide = GraphPieces._divide

    def noted(self, places):
        cut.append(self)
        return divide(self, places)

    monkeypatch.setattr(GraphPieces, "_divide", noted)
    plain, chain = Chain(between), Chain(between)
    expected = results(plain, plain)
    with caplog.at_level(logging.WARNING):
        found = results(chain, CompiledPass(chain, BACKEND, in_buckets=True))
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    # What a loop keeps for its gradient cannot leave what XLA compiles.
    assert ("XLA is off for this step" in caplog.text) == (between is looped_and_reduced)
    if between is looped_and_reduced:
        return
    if between is loop:
        assert [len(pieces.pieces) for pieces in cut] == [1]
        return
    assert [piece.compiled for piece in cut[0].pieces].count(False) == 2 * (between is reduced)
    assert sum(piece.compiled for piece in cut[0].pieces) >= 3
    assert sum(op.type == "AssignAddVariableOp" for p in cut[0].pieces for op in p.operations) == (
        between is state
    )


def test_what_a_shard_takes_from_its_step_is_its_own():
    scale: list[tf.Tensor] = []
    chain = Chain(lambda _, x: x * scale[-1])

    @tf.function(autograph=False)
    def step(x):
        compute = CompiledPass(chain, BACKEND, in_buckets=True)
        losses = []
        for shard in range(2):
            scale.append(tf.reduce_max(x) * shard)  # known in the step only
            losses.append(compute(x, ONE)[1])
        return losses

    first, second = step(X)
    assert first == 0
    assert second > 0
