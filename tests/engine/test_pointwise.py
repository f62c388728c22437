"""Gradients of 1 x 1 convolutions, as products."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.benchmarking.floor import operations_of
from distcnn.distribute.packing import undo_upcast
from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine import pointwise
from distcnn.engine.pointwise import as_products
from distcnn.engine.shard import Shard
from distcnn.engine.step import StepEngine
from distcnn.fast import fast_model
from distcnn.runtime.precision import Hardware


@pytest.fixture(autouse=True)
def matrix_units(monkeypatch):
    monkeypatch.setattr(pointwise, "_products_are_faster", lambda: True)


def small_model(dtype):
    def convolution(filters, size, **options):
        return keras.layers.Conv2D(filters, size, dtype=dtype, **options)

    layers = [
        keras.Input((9, 7, 8)),
        convolution(16, 1),
        convolution(16, 1, strides=(2, 3), padding="same"),
        convolution(8, 1, groups=2),
        convolution(12, 3, padding="same"),
        convolution(4, 1, padding="valid", use_bias=False),
    ]
    return keras.Sequential(layers)


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize("examples", [5, None])
def test_bfloat16_kernels_and_biases_of_pointwise_convolutions_get_products(dtype, examples):
    model = small_model(dtype)
    network = fast_model(model, None)
    images = np.random.default_rng(0).random((5, 9, 7, 8), np.float32)
    # Kernel and bias of each layer but the last, which has no bias.
    expected = [True, True, False, False, False, False, False, False, True]

    @tf.function(autograph=False)
    def gradients(images):
        with tf.GradientTape() as tape:
            outputs = network.call(images, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 2)
        plain = tape.gradient(loss, [variable.value for variable in model.trainable_variables])
        found = as_products([None, *plain])
        assert found[0] is None
        changed = [a is not b for a, b in zip(found[1:], plain, strict=True)]
        assert changed == [dtype == "mixed_bfloat16" and one for one in expected]
        return plain, found[1:]

    concrete = gradients.get_concrete_function(tf.TensorSpec((examples, 9, 7, 8), tf.float32))
    for plain, found in zip(*concrete(tf.constant(images)), strict=True):
        assert (plain.shape, plain.dtype) == (found.shape, found.dtype)
        size = np.abs(plain).max()
        tolerance = 0.01 if dtype == "mixed_bfloat16" else 0
        np.testing.assert_allclose(found, plain, rtol=0, atol=size * tolerance)


class Recorder(OneDevice):
    """Notes by which operations the gradients that it is given were computed."""

    def reduce_sum(self, tensors, *, compressible=0):
        self.kinds = [undo_upcast(tensor).op.type for tensor in tensors[:compressible]]
        return list(tensors)


@pytest.mark.parametrize(("fast", "expected"), [(True, 1), (False, 2)])
def test_the_step_of_a_fast_model_computes_products(fast, expected):
    layers = [keras.layers.Conv2D(16, size, dtype="mixed_bfloat16") for size in (1, 3)]
    model = keras.Sequential([keras.Input((9, 7, 8)), *layers])
    model.compile("sgd", "mse")
    model.optimizer.build(model.trainable_variables)
    backend = Recorder()
    engine = StepEngine(backend, fast=fast, sync_batchnorm=False)

    def step(x, y):
        with engine.installed():
            engine.train(model, [((x, y), Shard(4, 4, may_be_empty=False))])

    shapes = [(4, 9, 7, 8), (4, 7, 5, 16)]
    specs = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    tf.function(step, autograph=False).get_concrete_function(*specs)
    assert backend.kinds.count("Conv2DBackpropFilter") == expected
    assert len(backend.kinds) == 4


@pytest.mark.parametrize("has_matrix_units", [True, False])
def test_the_floor_counts_what_the_step_computes(monkeypatch, has_matrix_units):
    monkeypatch.undo()
    flags = frozenset({"avx512_bf16", *(["amx_bf16"] if has_matrix_units else [])})
    monkeypatch.setattr(pointwise, "find_hardware", lambda: Hardware(None, None, flags))
    layers = [keras.layers.Conv2D(16, size, dtype="mixed_bfloat16") for size in (1, 3, 1)]
    operations = operations_of(keras.Sequential([keras.Input((9, 7, 8)), *layers]), 2)
    kernels = [one for one in operations if one.kind == "Conv2DBackpropFilter"]
    products = [one for one in operations if one.kind == "MatMul"]
    assert len(kernels) == (1 if has_matrix_units else 3)
    sizes = [2 * 2 * 63 * 8 * 16, 2 * 2 * 35 * 16 * 16] if has_matrix_units else []
    assert sorted(one.flops for one in products) == sorted(sizes)
    assert all(one.create()().shape[-1] == 16 for one in kernels + products)
