"""Which gradients travel as factors, and what is multiplied."""

import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine.factors import Factors, factors_of
from distcnn.engine.shard import Shard


class TwoHalves(OneDevice):
    """A replica whose other one has the same rows, doubled."""

    size = 2

    def gather_rows(self, tensors, *, equal=False):
        assert equal
        assert [tensor.shape[0] for tensor in tensors] == [6]
        return [tf.concat([tensor, 2 * tensor], 0) for tensor in tensors]


# Two replicas of 16 rows: 2 * 16 * (512 + 512) * 4 / 2 bytes, a sixteenth of 512 * 512 * 4.
@pytest.mark.parametrize(
    ("rows", "inputs", "outputs", "dtype", "replicas", "expected"),
    [
        (16, 512, 512, tf.float32, 2, True),
        (16, 512, 512, tf.bfloat16, 2, True),
        (128, 512, 512, tf.float32, 2, True),  # exactly half
        (129, 512, 512, tf.float32, 2, False),
        (64, 512, 512, tf.float32, 4, True),
        (65, 512, 512, tf.float32, 4, False),
        (16, 128, 128, tf.float32, 2, False),  # small
        (128, 4096, 4096, tf.float32, 4, False),  # too many rows to multiply
    ],
)
def test_factors_travel_where_they_are_few(rows, inputs, outputs, dtype, replicas, expected):
    with tf.Graph().as_default():
        left, right = (tf.compat.v1.placeholder(dtype, [None, w]) for w in (inputs, outputs))
        gradient = tf.cast(tf.linalg.matmul(left, right, transpose_a=True), tf.float32)
        found = factors_of(gradient, rows, dtype, replicas)
        assert (found is not None) == expected
        if found is not None:
            assert found.left is left
            assert found.right is right


def found_in(*operands: tf.Tensor, examples: int = 16) -> bool:
    product = tf.linalg.matmul(*operands, transpose_a=True)
    return factors_of(product, examples, tf.float32, 2) is not None


def test_only_products_over_examples_have_factors():
    with tf.Graph().as_default():
        a, b = tf.zeros([16, 600]), tf.zeros([16, 700])
        product = tf.linalg.matmul(a, b, transpose_a=True)
        others = [tf.linalg.matmul(tf.transpose(a), b), product + 1.0]
        assert [factors_of(other, 16, tf.float32, 2) for other in others] == [None, None]
        assert found_in(a, b)
        assert not found_in(a, b, examples=15)  # two rows each, perhaps
        images = tf.compat.v1.placeholder(tf.float32, [None, 20, 30])
        anything = tf.compat.v1.placeholder(tf.float32, [None, 700])
        assert found_in(tf.cast(tf.reshape(images, [-1, 600]), tf.float32), anything)
        words = tf.compat.v1.placeholder(tf.float32, [None, 20, 600])
        assert not found_in(tf.reshape(words, [-1, 600]), anything)
    assert factors_of(tf.zeros([600, 700]), 4, tf.float32, 2) is None  # eager


def test_the_product_is_the_sum_of_the_gradients():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(5, 3)), random.normal(size=(5, 2))
    product = Factors(tf.constant(left), tf.constant(right), 6).multiplied(TwoHalves())
    np.testing.assert_allclose(product, 5 * left.T @ right, rtol=1e-12)


def test_rows_that_do_not_count_are_zeros():
    nothing = Shard(tf.constant(0), tf.constant(3), may_be_empty=True)
    factors = Factors(tf.fill([1, 3], np.nan), tf.fill([1, 2], np.inf), 6).counted(nothing)
    np.testing.assert_array_equal(factors.multiplied(TwoHalves()), np.zeros((3, 2)))
