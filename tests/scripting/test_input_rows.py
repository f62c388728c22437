"""Pipelines whose maps each worker computes for its own rows only."""

import re
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import ScriptConfig
from distcnn.distribute.base import Backend
from distcnn.engine.shard import cut_batch
from distcnn.scripting.batches import FIRST_STEPS, INTERVAL
from distcnn.scripting.input_chain import NotDivisibleError, take_apart
from distcnn.scripting.input_rows import InputRows, WorkerPipeline

Dataset: Any = tf.data.Dataset


class OneOf(Backend):
    """A backend that says which process it is, and does nothing."""

    name = "one of several"

    def __init__(self, rank: int, size: int, local_replicas: int = 1) -> None:
        self.rank, self.size, self.local_replicas = rank, size, local_replicas

    broadcast = gather = sum = run = close = None  # type: ignore[assignment]


def source(rows: int = 13) -> Any:
    x = np.arange(rows * 3, dtype=np.float32).reshape(rows, 3)
    return Dataset.from_tensor_slices((x, np.arange(rows)))


def twice(x: Any, y: Any) -> Any:
    return 2 * x, y


def as_dict(x: Any, y: Any) -> Any:
    return {"image": x, "text": tf.strings.as_string(y)}, tf.one_hot(y, 4)


def shuffled(**keywords: Any) -> Any:
    return source().shuffle(8, seed=3, **keywords)


def with_options(dataset: Any, **keywords: Any) -> Any:
    options = tf.data.Options()
    for name, value in keywords.items():
        setattr(options, name, value)
    return dataset.with_options(options)


DIVISIBLE = {
    "ragged end": lambda: source().map(twice).batch(5),
    "remainder dropped": lambda: source().map(twice).batch(5, drop_remainder=True),
    "a single row at the end": lambda: source().map(twice).batch(6),
    "batches of one row": lambda: source().map(twice).batch(1),
    "one batch": lambda: source().map(twice).batch(100),
    "a batch of eight and one of seven": lambda: source(15).map(twice).batch(8),
    "dict": lambda: source().map(as_dict).batch(4),
    "single tensors": lambda: Dataset.range(9).map(lambda i: i * i).batch(4),
    "a dict below": lambda: Dataset.from_tensor_slices({"a": np.arange(9)}).map(len).batch(4),
    "several maps": lambda: source().map(as_dict).prefetch(2).map(lambda x, y: (y, x)).batch(4),
    "parallel": lambda: (
        shuffled().map(twice, num_parallel_calls=4).batch(4, num_parallel_calls=2).prefetch(-1)
    ),
    "repeat after batch": lambda: shuffled().map(twice).batch(4).repeat(3),
    "repeat before batch": lambda: shuffled().map(twice).repeat(3).batch(4),
    "take of an endless one": lambda: shuffled().map(twice).repeat().batch(4).skip(1).take(7),
    "take and skip of elements": lambda: shuffled().map(twice).skip(1).take(9).repeat(2).batch(4),
    "cache below": lambda: source().map(twice).cache().shuffle(9, seed=1).map(twice).batch(4),
    "cache of batches": lambda: source().map(twice).batch(4).cache().repeat(2),
    "filter below": lambda: source().filter(lambda x, y: y % 3 > 0).map(twice).batch(4),
    "one order": lambda: shuffled(reshuffle_each_iteration=False).map(twice).batch(4).repeat(2),
    "options": lambda: with_options(source().map(twice), deterministic=True).batch(4),
    "random numbers below": lambda: (
        source().map(lambda x, y: (x + tf.random.uniform([3], seed=4), y)).map(twice).batch(4)
    ),
    "random numbers of the element": lambda: source().map(
        lambda x, y: (x + tf.random.stateless_uniform([3], [y, 7]), y)
    ).batch(4),
    "a loop and an assertion": lambda: source().map(
        lambda x, y: (tf.while_loop(lambda v: v[0] < 9, lambda v: (v + 1,), (x,))[0], y)
    ).batch(4),
}  # fmt: skip


def flat(value: Any) -> list[Any]:
    return [np.asarray(part).tolist() for part in tf.nest.flatten(value)]


def rejoined(parts: list[Any]) -> Any:
    """Returns the rows that count of all replicas."""
    counted = [
        keras.tree.map_structure(lambda part, count=int(shard.rows): part[:count], rows)
        for rows, shard in parts
    ]
    return keras.tree.map_structure(lambda *each: np.concatenate(each), *counted)


SEVERAL = [
    ("ragged end", 3, 1),
    ("a batch of eight and one of seven", 5, 1),
    ("remainder dropped", 2, 2),
    ("a single row at the end", 2, 2),
]
"""More workers, and more replicas in each."""


@pytest.mark.parametrize(
    ("name", "size", "local_replicas"), [*((name, 2, 1) for name in DIVISIBLE), *SEVERAL]
)
def test_the_rows_of_all_replicas_are_the_batch(name, size, local_replicas):
    def pipeline() -> Any:
        tf.random.set_seed(5)
        return DIVISIBLE[name]()

    expected = list(pipeline())
    backends = [OneOf(rank, size, local_replicas) for rank in range(size)]
    found = [list(WorkerPipeline(take_apart(pipeline()), each).build()) for each in backends]
    assert {len(batches) for batches in found} == {len(expected)}
    for number, batch in enumerate(expected):
        parts = []
        for backend, batches in zip(backends, found, strict=True):
            np.testing.assert_array_equal(batches[number].digest, found[0][number].digest)
            for replica in backend.local_replica_ids:
                parts.append(cut_batch(batches[number], replica, size * local_replicas))
                require_same_part(parts[-1], cut_batch(batch, replica, size * local_replicas))
        assert flat(rejoined(parts)) == flat(batch)


def require_same_part(own: Any, whole: Any) -> None:
    """The same rows, of which as many count; a row that does not count may be another one."""
    assert (int(own[1].rows), int(own[1].total)) == (int(whole[1].rows), int(whole[1].total))
    assert own[1].may_be_empty == whole[1].may_be_empty
    shapes = [[part.shape for part in tf.nest.flatten(each[0])] for each in (own, whole)]
    assert shapes[0] == shapes[1]


def test_each_worker_maps_its_own_rows_and_one_of_each_batch_that_is_compared():
    rows, size = 128 * 8, 8
    computed = [0, 0]
    for rank in range(2):

        def expensive(x: Any, rank: int = rank) -> Any:
            computed[rank] += 1
            return x

        def function(x: Any, expensive: Any = expensive) -> Any:
            return tf.numpy_function(expensive, [x], tf.int64, stateful=False)

        chain = take_apart(Dataset.range(rows).map(function).batch(size))
        for _ in WorkerPipeline(chain, OneOf(rank, 2)).build():
            pass
    compared = FIRST_STEPS + rows // size // INTERVAL - 1  # counted from 0, which is among both
    assert computed == [rows // 2 + compared] * 2


@pytest.mark.parametrize("other", ["order", "map"])
def test_other_elements_and_other_maps_have_another_digest(other):
    digests = []
    for rank in range(2):
        elements = source().shuffle(8, seed=rank if other == "order" else 0)
        table = tf.constant([1.0, rank if other == "map" else 0, 3])
        chain = take_apart(elements.map(lambda x, y, table=table: (x * table, y)).batch(5))
        digests.append(next(iter(WorkerPipeline(chain, OneOf(rank, 2)).build())).digest)
    assert np.any(digests[0] != digests[1])


def python_function(x: Any, y: Any) -> Any:
    return tf.py_function(lambda v: v, [x], tf.float32), y


def noisy(x: Any, y: Any) -> Any:
    return x + tf.random.uniform([3]), y


def counted(x: Any, y: Any) -> Any:
    return x, COUNTER.assign_add(y)


COUNTER = tf.Variable(0, dtype=tf.int64)

REFUSED = {
    "map(twice) comes after batch": lambda: source().batch(4).map(twice),
    "map(python_function) may keep a state (EagerPyFunc); if its result": (
        lambda: source().map(python_function).batch(4)
    ),
    "map(noisy) may keep a state (RandomUniform); tf.random.stateless": (
        lambda: source().map(noisy).batch(4)
    ),
    "map(counted) may keep a state (AssignAddVariableOp": lambda: source().map(counted).batch(4),
    "map(in_loop) may keep a state (RandomUniform)": lambda: source().map(in_loop).batch(4),
    "map(twice) is not deterministic": lambda: (
        source().map(twice, num_parallel_calls=2, deterministic=False).batch(4)
    ),
    "its order is not deterministic": lambda: (
        with_options(source().map(twice, num_parallel_calls=2).batch(4), deterministic=False)
    ),
    "shuffle comes between Dataset.map and batch": lambda: source().map(twice).shuffle(3).batch(4),
    "cache comes between Dataset.map and batch": lambda: source().map(twice).cache().batch(4),
    "no Dataset.map whose work": lambda: source().batch(4),
    "cache comes after batch, and keeps shuffled": lambda: shuffled().map(twice).batch(4).cache(),
    "shuffle comes after batch": lambda: source().map(twice).batch(4).shuffle(3),
    "padded_batch comes after batch, or is in place": lambda: source().map(twice).padded_batch(4),
    "filter comes between": lambda: source().map(twice).filter(lambda x, y: y > 2).batch(4),
    "unbatch comes after batch, or": lambda: source().map(twice).batch(4).unbatch(),
    "zip comes after batch, or": lambda: Dataset.zip((source(), source())),
    "its batches hold other things than tensors": lambda: (
        source().map(lambda x, y: tf.sparse.from_dense(x)).batch(4)
    ),
    "the elements of map have no fixed shape": lambda: (
        source().map(lambda x, y: tf.range(y), deterministic=False, num_parallel_calls=2)
        .map(tf.reduce_sum).batch(4)
    ),
}  # fmt: skip


def in_loop(x: Any, y: Any) -> Any:
    grown = tf.while_loop(lambda v: v[0] < 9, lambda v: (v + tf.random.uniform([]),), (x,))
    return grown[0], y


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_divided_and_why(reason):
    with pytest.raises(NotDivisibleError, match=re.escape(reason)):
        take_apart(REFUSED[reason]())


def test_folders_of_images_can_be_divided(tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        for number in range(3):
            image = np.full((9, 9, 3), number)
            keras.utils.save_img(tmp_path / name / f"{number}.png", image, scale=False)
    images = keras.utils.image_dataset_from_directory(tmp_path, image_size=(4, 4), seed=3)
    assert take_apart(images).functions


class Batches(keras.utils.PyDataset):
    def __getitem__(self, index: int) -> Any:
        return np.zeros((2, 2)), np.zeros(2)

    def __len__(self) -> int:
        return 3


DATA = {
    "each worker computes its own rows of a Dataset: map of twice": (
        lambda: source().map(twice).batch(4)
    ),
    "every worker reads whole batches of a Dataset, since it has no Dataset.map": (
        lambda: source().batch(4)
    ),
    "arrays, which is cheap": lambda: np.zeros((3, 2)),
    "every worker reads whole batches of a Batches, a PyDataset": lambda: Batches(),
    "every worker reads whole batches of a generator": lambda: (each for each in [0]),
}


@pytest.mark.parametrize("message", DATA)
@pytest.mark.parametrize("rank", [0, 1])
def test_rank_0_says_once_what_is_divided_or_why_not(message, rank, caplog):
    inputs = InputRows(ScriptConfig(input="shard"), OneOf(rank, 2))
    data = DATA[message]()
    iterators = [SimpleNamespace(), SimpleNamespace()]
    with caplog.at_level("INFO", "distcnn"):
        for iterator in iterators:
            inputs.divide(iterator, data, None)
    assert len(caplog.messages) == (rank == 0)
    assert all(message in text for text in caplog.messages)
    assert all(bool(vars(iterator)) == ("own rows" in message) for iterator in iterators)


def test_batches_stay_whole_unless_asked_otherwise(caplog):
    data, iterator = source().map(twice).batch(4), SimpleNamespace()
    inputs = InputRows(ScriptConfig(input="shard"), OneOf(0, 2))
    with caplog.at_level("INFO", "distcnn"):
        InputRows(ScriptConfig(), OneOf(0, 2)).divide(iterator, data, None)
        InputRows(ScriptConfig(input="shard"), OneOf(0, 1)).divide(iterator, data, None)
        with inputs.whole():
            inputs.divide(iterator, data, None)
        assert not caplog.messages
        InputRows(ScriptConfig(input="shard", batch="per_worker"), OneOf(0, 2)).divide(
            iterator, data, None
        )
    assert not vars(iterator)
    assert "--batch per_worker" in caplog.messages[0]
