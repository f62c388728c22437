"""What multi_worker sends of tensors whose shapes every process knows."""

import os
import subprocess
import sys

from distcnn.distribute.launching import tf_config

RANK = """
import os
import numpy as np
import tensorflow as tf
from distcnn.config import DistributeConfig
from distcnn.distribute.strategies import strategy_of
from distcnn.runtime.cluster import find_cluster
backend = strategy_of("multi_worker").build(
    DistributeConfig(factors="off"), find_cluster(os.environ)
)
assert not backend.sends_factors
own = backend.rank + 1

def step(scale):
    narrow = tf.cast(tf.fill([3, 2], scale * own), tf.bfloat16)
    wide, double = tf.fill([300], scale * own), tf.fill([2], tf.cast(scale, tf.float64))
    with tf.GradientTape() as tape:
        tape.watch(wide)
        sums = backend.reduce_sum([tf.cast(narrow, tf.float32), wide, double], compressible=1)
        loss = tf.reduce_sum(sums[1]) * own
    # Two of one length at once, and a third whose bits have the length of another type's.
    rows = backend.gather_rows([narrow, narrow + 1, tf.fill([1, 3], scale * own)], equal=True)
    return [*sums, tape.gradient(loss, wide), *rows]

traced = tf.function(lambda scale: backend.run(step, scale)[0])
nodes = [n.op for n in traced.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def().node]
collectives = sorted(node for node in nodes if node.startswith("Collective"))
for scale in range(1, 20):
    narrow, wide, double, gradient, one, other, third = traced(tf.constant(float(scale)))
    np.testing.assert_array_equal(narrow, np.full((3, 2), 3.0 * scale))
    np.testing.assert_array_equal(wide, np.full(300, 3.0 * scale))
    np.testing.assert_array_equal(double, np.full(2, 2.0 * scale))
    np.testing.assert_array_equal(gradient, np.full(300, 3.0))
    np.testing.assert_array_equal(tf.cast(one, tf.float32)[:, 0], scale * np.repeat([1.0, 2.0], 3))
    np.testing.assert_array_equal(tf.cast(other - one, tf.float32), np.ones((6, 2)))
    np.testing.assert_array_equal(third, scale * np.repeat([[1.0], [2.0]], 3, 1))
def long(scale):
    return backend.reduce_sum([tf.fill([2**18 + 1], scale * own)])[0]

ring = tf.function(lambda scale: backend.run(long, scale)[0])
np.testing.assert_array_equal(ring(tf.constant(1.0)), np.full(2**18 + 1, 3.0))
nodes = [n.op for n in ring.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def().node]
print(collectives, [node for node in nodes if node.startswith("Collective")])
"""


def test_equal_shapes_are_joined_in_one_round():
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    processes = [
        subprocess.Popen(line, env=own, stdout=subprocess.PIPE, text=True)
        for line, own in tf_config(2, [sys.executable, "-c", RANK], environment)
    ]
    said = [process.communicate(timeout=120)[0].strip() for process in processes]
    # A reduction, that of its gradient, and three tensors of rows: nothing else is sent.
    short, long = ["CollectiveGatherV2"] * 5, ["CollectiveReduceV2"]
    assert said == [f"{short} {long}"] * 2
