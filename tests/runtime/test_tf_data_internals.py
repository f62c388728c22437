"""The contract with tf.data's private parts: each test names what a new version would break."""

from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from distcnn.runtime import tf_data_internals as internals

Dataset: Any = tf.data.Dataset


def numbers() -> Any:
    return Dataset.range(6)


def function_of(dataset: Any) -> internals.MapFunction:
    found = internals.map_function_of(dataset)
    assert found is not None
    return found


def plus_one(x):
    return x + 1


STAGES = {
    "batch": lambda: numbers().batch(2),
    "map": lambda: numbers().map(plus_one),
    "prefetch": lambda: numbers().prefetch(1),
    "repeat": lambda: numbers().repeat(2),
    "take": lambda: numbers().take(2),
    "skip": lambda: numbers().skip(2),
    "with_options": lambda: numbers().with_options(tf.data.Options()),
    "cache": lambda: numbers().cache(),
}


@pytest.mark.parametrize("stage", STAGES)
def test_stages_are_known_and_have_an_input(stage):
    dataset = STAGES[stage]()
    assert internals.stage_of(dataset) == stage
    assert internals.is_known(dataset)
    assert internals.stage_of(internals.input_of(dataset)) == "range"


def test_sources_are_known_and_other_stages_are_named():
    assert internals.is_known(Dataset.from_tensor_slices([1]))
    assert internals.is_known(Dataset.from_tensors([1]))
    assert not internals.is_known(numbers().shuffle(2))
    others = [numbers().shuffle(2), numbers().filter(lambda x: x > 1), numbers().padded_batch(2)]
    assert [internals.stage_of(each) for each in others] == ["shuffle", "filter", "padded_batch"]
    with pytest.raises(AttributeError):
        internals.input_of(numbers())


def test_parallel_stages_are_the_same_stages():
    parallel = numbers().map(plus_one, num_parallel_calls=2).batch(3, num_parallel_calls=2)
    assert internals.stage_of(parallel) == "batch"
    assert internals.stage_of(internals.input_of(parallel)) == "map"


def test_the_arguments_of_batches():
    assert internals.batch_of(numbers().batch(2)) == (2, False, True)
    assert internals.batch_of(numbers().batch(3, drop_remainder=True)) == (3, True, True)
    loose = numbers().batch(2, num_parallel_calls=2, deterministic=False)
    assert internals.batch_of(loose) == (2, False, False)


def test_counts():
    assert internals.count_of(numbers().repeat()) == -1
    assert internals.count_of(numbers().repeat(3)) == 3
    assert internals.count_of(numbers().take(4)) == 4
    assert internals.count_of(numbers().skip(5)) == 5
    assert internals.prefetched(numbers().prefetch(tf.data.AUTOTUNE)) == -1
    assert internals.prefetched(numbers().prefetch(7)) == 7


def test_where_a_cache_is(tmp_path):
    assert internals.is_in_memory(numbers().cache())
    assert not internals.is_in_memory(numbers().cache(str(tmp_path / "cache")))


def test_the_function_of_a_map():
    function = function_of(numbers().map(plus_one))
    assert function.name == "plus_one"
    assert function.stateful == []
    assert (function.num_parallel_calls, function.deterministic) == (None, True)
    assert not function.synchronous
    assert function_of(numbers().map(plus_one, synchronous=True)).synchronous
    parallel = numbers().map(plus_one, num_parallel_calls=3)
    assert function_of(parallel).num_parallel_calls == 3
    assert function_of(parallel).deterministic is None
    for kept in (True, False):
        parallel = numbers().map(plus_one, num_parallel_calls=3, deterministic=kept)
        assert function_of(parallel).deterministic is kept


def test_a_function_is_called_without_being_traced_again():
    traced = []

    def function(pair):
        traced.append(pair)
        return {"sum": pair["a"] + pair["b"], "ragged": tf.RaggedTensor.from_tensor([pair["b"]])}

    element = {"a": np.arange(3), "b": np.ones((3, 2), np.int64)}
    found = function_of(Dataset.from_tensor_slices(element).map(function))
    result = found({"a": tf.constant(4, tf.int64), "b": tf.constant([1, 2], tf.int64)})
    assert result["sum"].numpy().tolist() == [5, 6]
    assert result["ragged"].to_list() == [[1, 2]]
    assert len(traced) == 1


TABLE = tf.lookup.StaticHashTable(
    tf.lookup.KeyValueTensorInitializer(tf.range(6, dtype=tf.int64), tf.range(6)), 0
)
VARIABLE = tf.Variable(1, dtype=tf.int64)


@pytest.mark.parametrize(
    "function",
    [
        TABLE.lookup,
        lambda x: x + VARIABLE,
        lambda x: tf.cond(x > 1, lambda: x, lambda: x + 1),
        lambda x: tf.while_loop(lambda v: v < 9, lambda v: v + 1, [x])[0],
        lambda x: tf.function(plus_one)(x),
        lambda x: tf.random.stateless_uniform([2], [x, 1]),
        lambda x: tf.numpy_function(plus_one, [x], tf.int64, stateful=False),
        lambda x: tf.debugging.check_numerics(tf.cast(x, tf.float32), "no number"),
    ],
    ids=["table", "variable", "cond", "while", "call", "stateless", "numpy", "check"],
)
def test_functions_without_a_state(function):
    assert function_of(numbers().map(function)).stateful == []


@pytest.mark.parametrize(
    ("function", "operation"),
    [
        (lambda x: x + tf.random.uniform([], 0, 9, tf.int64), "RandomUniformInt"),
        (lambda x: tf.random.shuffle([x, x]), "RandomShuffle"),
        (lambda x: VARIABLE.assign_add(x), "AssignAddVariableOp"),
        (lambda x: tf.py_function(plus_one, [x], tf.int64), "EagerPyFunc"),
        (lambda x: tf.numpy_function(plus_one, [x], tf.int64), "PyFunc"),
        (lambda x: tf.function(lambda v: v + tf.random.normal([]))(1.0), "RandomStandardNormal"),
        (
            lambda x: tf.cond(x > 1, lambda: 0.0, lambda: tf.random.uniform([])),
            "RandomUniform",
        ),
        (lambda x: tf.timestamp(), "Timestamp"),
    ],
    ids=["random", "shuffle", "assign", "python", "numpy", "call", "cond", "time"],
)
def test_operations_that_keep_a_state_are_found_wherever_they_are(function, operation):
    assert operation in function_of(numbers().map(function)).stateful
