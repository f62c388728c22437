"""Which gradients are reduced together, and when."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.distribute.packing import undo_upcast
from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine.buckets import in_buckets
from distcnn.engine.shard import Shard
from distcnn.engine.step import StepEngine

SHAPES = {"large": (50, 50), "a": (20, 20), "b": (20, 20), "c": (20, 20), "tiny": (3,)}


def in_graph(names):
    """Returns the buckets of gradients that a graph computes in the order of the names."""
    found = []

    def step():
        computed = {name: tf.random.stateless_normal(SHAPES[name], [1, 2]) for name in names}
        gradients = [computed[name] for name in SHAPES]  # in the order of the variables
        indices = in_buckets(gradients, 4000)
        found.extend([[list(SHAPES)[index] for index in bucket] for bucket in indices])

    tf.function(step).get_concrete_function()
    return found


@pytest.mark.parametrize(
    ("computed", "buckets"),
    [
        (["tiny", "a", "b", "c", "large"], [["a", "b"], ["large"], ["c", "tiny"]]),
        (["large", "c", "b", "a", "tiny"], [["large"], ["c", "b"], ["a", "tiny"]]),
        (["c", "large", "tiny", "a", "b"], [["large"], ["c", "a"], ["b", "tiny"]]),
    ],
)
def test_gradients_share_a_bucket_in_the_order_in_which_they_are_computed(computed, buckets):
    assert in_graph(computed) == buckets


def test_gradients_of_one_operation_come_last_layer_first():
    eager = [tf.zeros(shape) for shape in SHAPES.values()]
    assert in_buckets(eager, 4000) == [[3, 2], [0], [1, 4]]
    assert in_buckets(eager, 0) == [[4, 3, 2, 1, 0]]
    assert in_buckets([], 4000) == [[]]


def test_every_gradient_is_in_one_bucket_none_of_which_exceeds_the_limit_by_several():
    random = np.random.default_rng(3)
    gradients = [tf.zeros([int(n)]) for n in random.integers(1, 3000, 200)]
    buckets = in_buckets(gradients, 4000)
    assert sorted(index for bucket in buckets for index in bucket) == list(range(200))
    for bucket in buckets[:-1]:
        assert len(bucket) == 1 or sum(4 * gradients[i].shape[0] for i in bucket) <= 4000


class Recorder(OneDevice):
    """Records what is reduced."""

    size = 2

    def __init__(self, bucket_bytes):
        self.bucket_bytes = bucket_bytes
        self.calls = []

    def reduce_sum(self, tensors, *, compressible=0):
        self.calls.append([*tensors[:compressible]])
        return list(tensors)


def needed_for(tensors):
    """Returns the number of matrix products that compute tensors, those of functions included."""
    library = tensors[0].graph.as_graph_def().library.function
    inside = {f.signature.name: sum(n.op == "MatMul" for n in f.node_def) for f in library}
    products, found, todo = 0, set(), [tensor.op for tensor in tensors]
    while todo:
        operation = todo.pop()
        if operation.name not in found:
            found.add(operation.name)
            products += operation.type == "MatMul"
            if operation.type.endswith("PartitionedCall"):
                products += inside[operation.get_attr("f").name]
            todo += [tensor.op for tensor in operation.inputs] + list(operation.control_inputs)
    return products


def test_xla_leaves_the_reduction_gradients_that_travel_in_two_bytes():
    class Narrow(Recorder):
        def wire_type(self, tensor, *, compressible, replicas):
            return undo_upcast(tensor).dtype

    backend = Narrow(1000)
    dense = [keras.layers.Dense(20, dtype="mixed_bfloat16") for _ in range(3)]
    model = keras.Sequential([keras.Input((20,)), *dense])
    model.compile("sgd", "mse", jit_compile=True)
    model.optimizer.build(model.trainable_variables)
    engine = StepEngine(backend, fast=None, sync_batchnorm=False)

    def step(x, y):
        with engine.installed():
            engine.train(model, [((x, y), Shard(4, 4, may_be_empty=False))])

    spec = tf.TensorSpec([4, 20], tf.float32)
    tf.function(step, autograph=False).get_concrete_function(spec, spec)
    reduced = [tensor for call in backend.calls for tensor in call]
    assert len(backend.calls) == 4  # the biases last
    assert {tensor.dtype for tensor in reduced} == {tf.float32}
    assert {tensor.op.type for tensor in reduced} == {"Cast"}
    assert {tensor.op.inputs[0].dtype for tensor in reduced} == {tf.bfloat16}


# 4 in the forward pass, one for each layer whose output is differentiated, one per kernel. XLA's
# pieces come one after another, so that each needs all of those before.
@pytest.mark.parametrize(
    ("bucket_bytes", "xla", "products"),
    [
        (0, False, [11]),
        (0, True, [11]),
        (1000, False, [5, 6, 7, 8]),
        (1000, True, [5, 7, 9, 11]),
    ],
)
def test_a_bucket_needs_no_more_of_the_backward_pass_than_its_own_gradients(
    bucket_bytes, xla, products
):
    backend = Recorder(bucket_bytes)
    model = keras.Sequential(
        [keras.Input((8,)), *(keras.layers.Dense(20, name=f"layer{i}") for i in range(4))]
    )
    model.compile("sgd", "mse", jit_compile=xla)
    model.optimizer.build(model.trainable_variables)
    engine = StepEngine(backend, fast=None, sync_batchnorm=False)

    def step(x, y, rows):
        with engine.installed():  # which of the rows count is known in the step only
            engine.train(model, [((x, y), Shard(rows, tf.constant(4), may_be_empty=True))])

    tf.function(step).get_concrete_function(
        tf.TensorSpec([4, 8], tf.float32),
        tf.TensorSpec([4, 20], tf.float32),
        tf.TensorSpec([], tf.int32),
    )
    assert [needed_for(call) for call in backend.calls] == products
