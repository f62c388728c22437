"""The contract with Keras' private parts: each test names what a new version would break."""

import sys
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.runtime import keras_fit, keras_hooks, keras_steps
from distcnn.runtime import keras_internals as internals

layers = keras.layers


def branched() -> keras.Model:
    inputs = keras.Input((4,))
    left, right = layers.Dense(3, name="left")(inputs), layers.Dense(3, name="right")(inputs)
    return keras.Model(inputs, {"sum": layers.Add(name="sum")([left, right]), "left": left})


def test_the_graph_of_sequential_and_functional_models_and_of_no_other():
    model = branched()
    assert internals.functional_graph(model) is model
    sequential = keras.Sequential([keras.Input((4,)), layers.Dense(2)])
    assert [x.name for x in sequential.layers] == [
        call.operation.name
        for call in internals.calls_in_order(internals.functional_graph(sequential))
    ]
    own = type("Own", (keras.Model,), {"call": lambda self, x: x})()
    assert internals.functional_graph(own) is None


def test_calls_come_after_those_that_they_depend_on():
    calls = list(internals.calls_in_order(branched()))
    names = [call.operation.name for call in calls]
    assert sorted(names[:2]) == ["left", "right"]
    assert names[2:] == ["sum"]
    assert len(calls[2].input_tensors) == 2
    assert len(calls[2].outputs) == 1
    arguments, keywords = calls[2].arguments.fill_in(
        {id(tensor): number for number, tensor in enumerate(calls[2].input_tensors)}
    )
    assert (arguments, keywords) == (([0, 1],), {})


def test_the_structure_of_the_outputs():
    assert set(internals.output_structure(branched())) == {"sum", "left"}


def test_all_layers_and_their_seed_generators():
    inner = keras.Sequential([keras.Input((4,)), layers.Dropout(0.5, name="drop")])
    outer = keras.Sequential([keras.Input((4,)), inner, layers.Dense(2, name="dense")])
    found = {layer.name: layer for layer in internals.all_layers(outer)}
    assert {"drop", "dense"} <= set(found)
    assert outer.name not in found
    assert len(internals.seed_generators(found["drop"])) == 1
    assert not internals.seed_generators(found["dense"])


def test_what_makes_an_operation_compute_as_in_evaluation():
    assert internals.in_evaluation(layers.Dropout(0.5)) == {"training": False}
    assert internals.in_evaluation(layers.Flatten()) == {}
    images = keras.Input((4,))
    call = next(internals.calls_in_order(keras.Model(images, images * 2)))
    assert internals.in_evaluation(call.operation) == {}


def test_batch_moments_are_taken_from_the_function():
    layer = layers.BatchNormalization(center=False, scale=False, epsilon=0.0, momentum=0.0)
    layer.build((None, 2, 2, 3))
    assert tuple(internals.normalised_axes(layer)) == (0, 1, 2)
    internals.replace_batch_moments(layer, lambda x, mask: (tf.ones([3]), tf.fill([3], 4.0)))
    outputs = layer(np.full((1, 2, 2, 3), 5.0, np.float32), training=True)
    np.testing.assert_allclose(outputs, np.full((1, 2, 2, 3), 2.0), rtol=1e-6)
    np.testing.assert_allclose(layer.moving_mean, [1.0] * 3)


@pytest.mark.parametrize("kind", [keras.optimizers.Adam, keras.optimizers.AdamW])
def test_adams_moments(kind):
    first, second = keras.Variable([1.0, 2.0]), keras.Variable([3.0])
    optimizer = kind(0.1)
    optimizer.build([first, second])
    assert internals.variable_index(optimizer, second) == 1
    optimizer.apply([tf.constant([1.0, -1.0]), tf.constant([2.0])])
    momentum, velocity = internals.adam_moments(optimizer, first)
    np.testing.assert_allclose(momentum, [0.1, -0.1], rtol=1e-6)
    np.testing.assert_allclose(velocity, [0.001, 0.001], rtol=1e-6)


@pytest.mark.parametrize("scaled", [False, True])
def test_reduced_gradients_are_not_reduced_again(scaled):
    optimizer = inner = keras.optimizers.SGD(1.0)
    if scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(inner)
    assert hasattr(inner, "_all_reduce_sum_gradients")  # what Keras calls under a strategy
    internals.skip_gradient_reduction(optimizer)
    pairs = [(1, 2)]
    assert inner._all_reduce_sum_gradients(pairs) == pairs


def test_callbacks_are_called_at_once():
    callbacks = keras.callbacks.CallbackList([])
    assert hasattr(callbacks, "_async_train")
    internals.call_synchronously(callbacks)
    assert not callbacks._async_train


POINTS = [
    name
    for name, point in vars(keras_hooks).items()
    if isinstance(point, keras_hooks.HookPoint | keras_hooks.FunctionPoint)
]


@pytest.mark.parametrize("name", POINTS)
def test_each_place_that_a_session_changes_can_be_replaced_and_put_back(name):
    point = getattr(keras_hooks, name)
    hooks = keras_hooks.Hooks()
    is_method = isinstance(point, keras_hooks.HookPoint)
    original = getattr(point.owner, point.name) if is_method else point.function
    seen = []

    def replacement(function: Any) -> Any:
        seen.append(function)
        return lambda *_: "replaced"

    hooks.replace(point, replacement)
    try:
        assert seen == [original]
        if is_method:
            assert getattr(point.owner, point.name) is not original
        else:
            module = sys.modules[point.function.__module__]
            assert getattr(module, point.name)() == "replaced"
    finally:
        hooks.restore()
    if is_method:
        assert getattr(point.owner, point.name) == original
    else:
        assert getattr(sys.modules[point.function.__module__], point.name) is original


def test_input_structure():
    assert internals.input_structure(branched()).shape == (None, 4)
    pair = {name: keras.Input((1,), name=name) for name in "ab"}
    graph = keras.Model(pair, layers.Concatenate()(list(pair.values())))
    assert sorted(internals.input_structure(graph)) == ["a", "b"]


def test_the_dtype_policy_follows_the_float_type_again():
    keras.config.set_dtype_policy("mixed_bfloat16")
    internals.forget_dtype_policy()
    assert keras.config.dtype_policy().name == "float32"


def test_whether_a_rate_follows_a_schedule():
    schedule = keras.optimizers.schedules.ExponentialDecay(0.1, 10, 0.5)
    assert internals.follows_schedule(keras.optimizers.Adam(schedule))
    assert not internals.follows_schedule(keras.optimizers.Adam(0.1))


def test_the_batches_of_an_iterator_are_replaced():
    strategy = tf.distribute.get_strategy()
    data = tf.data.Dataset.range(4).batch(2)
    iterator = keras_hooks.EPOCH_ITERATOR.owner(x=data, distribute_strategy=strategy)
    keras_fit.replace_batches(iterator, data.map(lambda x: -x))
    steps = [next(batches).numpy().tolist() for _, _, batches in iterator]
    assert steps == [[0, -1], [-2, -3]]


def test_class_weights():
    weigh = keras_fit.with_class_weight({0: 2.0, 2: 0.5})
    x, y, weights = weigh(tf.zeros([3, 2]), tf.constant([2, 0, 1]))
    assert (x.shape, y.numpy().tolist()) == ((3, 2), [2, 0, 1])
    assert weights.numpy().tolist() == [0.5, 2.0, 1.0]


def unbuilt_with_a_frozen_layer() -> keras.Model:
    model = keras.Sequential([layers.Dense(3), layers.BatchNormalization(), layers.Dense(2)])
    model.layers[0].trainable = False
    model.compile("adam", "mse")
    return model


def test_variables_that_are_frozen_when_they_are_created_can_be_trained_later():
    model = unbuilt_with_a_frozen_layer()
    batch = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2)))
    keras_steps.build_symbolically(model, batch)
    assert len(model.trainable_weights) == 4
    assert [v.value.trainable for v in model.variables] == [True] * 4 + [False] * 2 + [True] * 2
    model.layers[0].trainable = True
    assert len(model.trainable_weights) == 6


def test_the_optimizer_is_built_only_if_wanted():
    for wanted in (False, True):
        model = unbuilt_with_a_frozen_layer()
        batch = (tf.TensorSpec((None, 4)), tf.TensorSpec((None, 2)))
        keras_steps.build_symbolically(model, batch, build_optimizer=wanted)
        assert model.optimizer.built == wanted
