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
    # Many of one length at once, and another type whose bits have that length, too.
    rows = backend.gather_rows(
        [*(narrow + i for i in range(40)), tf.fill([1, 3], scale * own)], equal=True
    )
    return [*sums, tape.gradient(loss, wide), *rows]

traced = tf.function(lambda scale: backend.run(step, scale)[0])
graph = traced.get_concrete_function(tf.TensorSpec([])).graph.as_graph_def()
collectives = sorted(node.op for node in graph.node if node.op.startswith("Collective"))
numbering = [node for node in graph.node if node.op == "AssignAddVariableOp"]
waits = [any(i.startswith("^CollectiveGather") for i in node.input) for node in numbering]
assert waits == [False] + [True] * 42, "a gather begins before the last one has ended"
for scale in range(1, 20):
    narrow, wide, double, gradient, *many, last = traced(tf.constant(float(scale)))
    np.testing.assert_array_equal(narrow, np.full((3, 2), 3.0 * scale))
    np.testing.assert_array_equal(wide, np.full(300, 3.0 * scale))
    np.testing.assert_array_equal(double, np.full(2, 2.0 * scale))
    np.testing.assert_array_equal(gradient, np.full(300, 3.0))
    for i, rows in enumerate(many):
        expected = scale * np.repeat([[1.0, 1.0], [2.0, 2.0]], 3, 0) + i
        np.testing.assert_array_equal(tf.cast(rows, tf.float32), expected)
    np.testing.assert_array_equal(last, scale * np.repeat([[1.0], [2.0]], 3, 1))
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
    # A reduction, that of its gradient, and 41 tensors of rows: nothing else is sent.
    short, long = ["CollectiveGatherV2"] * 43, ["CollectiveReduceV2"]
    assert said == [f"{short} {long}"] * 2
