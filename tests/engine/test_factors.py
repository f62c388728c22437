"""Which gradients travel as factors, and what is multiplied."""

import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine.factors import Factors, factor_bytes, factors_of
from distcnn.engine.shard import Shard


class TwoHalves(OneDevice):
    """A replica whose other one has the same rows, doubled."""

    size = 2

    def gather_rows(self, tensors):
        return [tf.concat([tensor, 2 * tensor], 0) for tensor in tensors]


# 2 replicas of 16 rows: 2 * 16 * (512 + 512) * 4 / 2 bytes against 512 * 512 * 4.
@pytest.mark.parametrize(
    ("rows", "hint", "inputs", "outputs", "dtype", "replicas", "expected"),
    [
        (16, None, 512, 512, tf.float32, 2, 65_536),
        (None, 16, 512, 512, tf.float32, 2, 65_536),
        (None, 16, 512, 512, tf.bfloat16, 2, 32_768),
        (16, 99, 512, 512, tf.float32, 4, 131_072),
        (None, None, 512, 512, tf.float32, 2, 0),  # nobody knows
        (129, None, 512, 512, tf.float32, 2, 0),  # more than half of the kernel
        (16, None, 128, 128, tf.float32, 2, 0),  # small
        (128, None, 4096, 4096, tf.float32, 4, 0),  # too many rows to multiply
    ],
)
def test_factors_travel_where_they_are_few(rows, hint, inputs, outputs, dtype, replicas, expected):
    with tf.Graph().as_default():
        left, right = (tf.compat.v1.placeholder(dtype, [rows, w]) for w in (inputs, outputs))
        gradient = tf.cast(tf.linalg.matmul(left, right, transpose_a=True), tf.float32)
        assert factor_bytes(gradient, hint, dtype, replicas) == expected


def test_only_products_over_rows_have_factors():
    with tf.Graph().as_default():
        a, b = tf.zeros([4, 3]), tf.zeros([4, 2])
        assert factors_of(tf.linalg.matmul(a, b, transpose_a=True)) is not None
        assert factors_of(tf.linalg.matmul(tf.transpose(a), b)) is None
        assert factors_of(tf.linalg.matmul(a, b, transpose_a=True) + 1.0) is None
    assert (
        factors_of(tf.linalg.matmul(tf.zeros([4, 3]), tf.zeros([4, 2]), transpose_a=True)) is None
    )


def test_the_product_is_the_sum_of_the_gradients():
    random = np.random.default_rng(0)
    left, right = random.normal(size=(5, 3)), random.normal(size=(5, 2))
    product = Factors(tf.constant(left), tf.constant(right)).multiplied(TwoHalves())
    np.testing.assert_allclose(product, 5 * left.T @ right, rtol=1e-12)


def test_rows_that_do_not_count_are_zeros():
    nothing = Shard(tf.constant(0), tf.constant(3), may_be_empty=True)
    factors = Factors(tf.fill([1, 3], np.nan), tf.fill([1, 2], np.inf)).counted(nothing)
    np.testing.assert_array_equal(factors.multiplied(TwoHalves()), np.zeros((3, 2)))
