"""Sums over processes of what they packed."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute import packing
from distcnn.distribute.packing import packed_sum, sum_over_processes


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32])
@pytest.mark.parametrize("elements", [7, packing._LARGE_ELEMENTS])
def test_sums_are_those_of_float32_in_rank_order(dtype, elements):
    random = np.random.default_rng(0)
    parts = [tf.cast(random.normal(size=elements), dtype) for _ in range(3)]

    @tf.function
    def add(*parts):
        return sum_over_processes([[part] for part in parts])

    first, second, third = (np.asarray(tf.cast(part, tf.float32)) for part in parts)
    np.testing.assert_array_equal(add(*parts)[0], first + second + third)
    compiled = "_XlaMustCompile" in str(add.get_concrete_function(*parts).graph.as_graph_def())
    assert compiled == (dtype.size == 2 and elements > 7)  # in one pass over the memory


def test_nothing_is_sent_of_nothing():
    """As where every gradient of a bucket travels as rows."""

    def send(tensors: Any) -> Any:
        raise AssertionError("something was sent")

    assert packed_sum([], send, send) == []
