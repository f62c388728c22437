"""`--input shard`: each worker maps only its own rows of a `tf.data` pipeline's batches.

Every worker still reads all elements below the maps, in the same order, and so agrees on which
elements make a batch. Of each batch it keeps the rows of its own replicas, and computes the maps of
these. A replica then takes its rows as it does of a whole batch.
"""

import contextlib
import logging
import weakref
from collections.abc import Iterator
from typing import Any

import keras
import tensorflow as tf

from distcnn.config import ScriptConfig
from distcnn.distribute.base import Backend
from distcnn.engine.shard import WorkerRows, bounds
from distcnn.runtime.keras_fit import has_only_arrays, replace_batches, with_class_weight
from distcnn.runtime.tf_data_internals import MapFunction
from distcnn.scripting.batches import FIRST_STEPS, INTERVAL, PIECES, content_hash, pieces_of
from distcnn.scripting.input_chain import InputChain, NotDivisibleError, take_apart

log = logging.getLogger("distcnn")


class InputRows:
    """Makes the pipelines that a script fits and evaluates compute this worker's rows only.

    Args:
        config: How the script runs.
        backend: Runs the replicas.
    """

    def __init__(self, config: ScriptConfig, backend: Backend) -> None:
        self._backend = backend
        self._enabled = config.input == "shard" and backend.replicas > 1
        self._rebatched = config.batch == "per_worker"
        self._divided: weakref.WeakKeyDictionary[tf.data.Dataset, tf.data.Dataset | None]
        self._divided = weakref.WeakKeyDictionary()
        self._said: set[str] = set()

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Leaves batches whole in the context, for what needs them whole."""
        before, self._enabled = self._enabled, False
        try:
            yield
        finally:
            self._enabled = before

    def divide(self, iterator: Any, data: Any, class_weight: Any) -> None:
        """Makes one of Keras' epoch iterators yield `WorkerRows`, if its data can be divided.

        Args:
            iterator: The iterator, which yields whole batches.
            data: The argument `x` of `fit` or `evaluate`.
            class_weight: Their argument `class_weight`.
        """
        if not self._enabled:
            return
        if not isinstance(data, tf.data.Dataset):
            self._say(_why_not(data))
            return
        if data not in self._divided:
            self._divided[data] = self._rows_of(data)
        rows = self._divided[data]
        if rows is None:
            return
        if class_weight is not None:
            weigh = with_class_weight(class_weight)
            rows = rows.map(lambda part: WorkerRows(weigh(*part.rows), *part[1:]))
        replace_batches(iterator, rows)

    def _rows_of(self, data: tf.data.Dataset) -> tf.data.Dataset | None:
        try:
            if self._rebatched:
                raise NotDivisibleError("--batch per_worker makes its batches anew")
            chain = take_apart(data)
        except NotDivisibleError as reason:
            self._say(f"every worker reads whole batches of a Dataset, since {reason}")
            return None
        names = ", ".join(function.name for function in chain.functions)
        self._say(f"each worker computes its own rows of a Dataset: map of {names}")
        return WorkerPipeline(chain, self._backend).build()

    def _say(self, text: str) -> None:
        if text not in self._said and self._backend.is_chief:
            log.info("input           %s", text)
        self._said.add(text)


def _why_not(data: Any) -> str:
    """Returns why other data than a `tf.data.Dataset` is not divided."""
    if has_only_arrays(data):
        return "every worker slices whole batches of arrays, which is cheap"
    kind = type(data).__name__
    if isinstance(data, keras.utils.PyDataset):
        kind += ", a PyDataset"
    return (
        f"every worker reads whole batches of a {kind}, which makes them itself; only the maps of "
        "a tf.data.Dataset can be divided"
    )


class WorkerPipeline:
    """A pipeline that makes the rows of this worker's replicas.

    Args:
        chain: The script's pipeline.
        backend: Runs the replicas.
    """

    def __init__(self, chain: InputChain, backend: Backend) -> None:
        self._chain = chain
        self._replicas = backend.replicas
        self._ids = backend.local_replica_ids
        size = chain.batch_size
        # With 5 replicas, the third has 1 row of 8, but 2 of 7.
        sizes = [size] if chain.drop_remainder else range(1, size + 1)
        self._most = max(self._kept(*self._own(rows)) for rows in sizes)

    def build(self) -> tf.data.Dataset:
        """Returns the pipeline, which yields a `WorkerRows` for each batch of the script's."""
        chain = self._chain
        batches = chain.base.batch(chain.batch_size, drop_remainder=chain.drop_remainder)
        rows = batches.enumerate().map(self._own_elements, synchronous=True).unbatch()
        for stage in chain.maps:
            rows = rows.prefetch(stage) if isinstance(stage, int) else _mapped(rows, stage)
        rows = rows.batch(self._most, drop_remainder=chain.drop_remainder)
        rows = rows.map(self._batch, synchronous=True)
        for change in chain.above:
            rows = change(rows)
        return rows.with_options(chain.options)

    def _own(self, rows: Any) -> tuple[Any, Any]:
        """Returns the first row of this worker and the first row after its last."""
        first, _ = bounds(rows, self._ids[0], self._replicas)
        _, last = bounds(rows, self._ids[-1], self._replicas)
        return first, last

    def _kept(self, first: Any, last: Any) -> Any:
        """Returns how many rows are computed: at least one, which may not count."""
        larger = max if isinstance(last, int) else tf.maximum
        return larger(last - first, 1)

    @tf.autograph.experimental.do_not_convert
    def _own_elements(self, number: tf.Tensor, *batch: Any) -> tuple[Any, Any]:
        """Returns this worker's elements of a batch, each with what is known of the batch."""
        elements = batch if len(batch) > 1 else batch[0]
        total = tf.shape(tf.nest.flatten(elements)[0])[0]
        first, last = self._own(total)
        # All batches but a smaller last one must have the same number of elements here.
        is_full = total == self._chain.batch_size
        count = tf.where(is_full, self._most, self._kept(first, last))
        places = tf.minimum(first + tf.range(count), total - 1)
        own = tf.nest.map_structure(lambda part: tf.gather(part, places), elements)
        digest = self._digest(number, elements, total)
        return own, (tf.fill([count], total), tf.repeat(digest[None], count, 0))

    def _digest(self, number: tf.Tensor, elements: Any, total: tf.Tensor) -> tf.Tensor:
        """Returns a hash of a batch's elements, and of what the maps make of one of them.

        It is 0 for the batches that are not compared.
        """

        def found() -> tf.Tensor:
            place = tf.cast(number, tf.int32) % total
            sample = tf.nest.map_structure(lambda part: part[place], elements)
            for function in self._chain.functions:
                sample = function(sample)
            return pieces_of(content_hash((elements, sample)))

        due = (number < FIRST_STEPS) | (number % INTERVAL == 0)
        return tf.cond(due, found, lambda: tf.zeros(PIECES))

    @tf.autograph.experimental.do_not_convert
    def _batch(self, rows: Any, known: tuple[tf.Tensor, tf.Tensor]) -> WorkerRows:
        totals, digests = known
        chain = self._chain
        total = chain.batch_size if chain.drop_remainder else totals[0]
        first, last = self._own(total)
        kept = self._kept(first, last)
        cut = tf.nest.map_structure(lambda part: part[:kept], rows)
        return WorkerRows(cut, tf.zeros([total, 0]), tf.zeros([first, 0]), digests[0])


def _mapped(rows: tf.data.Dataset, function: MapFunction) -> tf.data.Dataset:
    """Maps elements that have what is known of their batch beside them."""

    def change(element: Any, known: Any) -> tuple[Any, Any]:
        return function(element), known

    if function.num_parallel_calls is None:
        return rows.map(change, synchronous=function.synchronous)
    calls = function.num_parallel_calls
    return rows.map(change, num_parallel_calls=calls, deterministic=function.deterministic)
