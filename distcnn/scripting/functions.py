"""The functions that Keras' `fit`, `evaluate` and `predict` call for each batch, on every replica.

Keras' own loops run unchanged. What they call is made here: each replica cuts its rows from the
batch, runs the model's own step on them, and returns the results over all replicas.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from distcnn.engine.fast import fuse_optimizer
from distcnn.engine.shard import Shard, computing, cut_batch
from distcnn.engine.step import StepEngine
from distcnn.engine.virtual_workers import VirtualWorkers
from distcnn.runtime.keras_hooks import (
    MAKE_FUNCTION,
    MAKE_PREDICT_FUNCTION,
    REDUCE_PER_REPLICA,
    Hooks,
)
from distcnn.runtime.keras_steps import (
    has_own_predict_step,
    has_own_train_step,
    one_step_an_execution,
    predicting_by,
    without_optionals,
    without_xla,
)
from distcnn.scripting.batches import BatchComparison

log = logging.getLogger("distcnn")

Step = Callable[[Any], Any]
"""A model's `train_step`, `test_step` or `predict_step`."""


@dataclass(frozen=True, kw_only=True)
class ScriptStepOptions:
    """How steps compute.

    Attributes:
        fast: Whether models compute in their fast form where they have one.
        xla: Whether XLA compiles the steps, or None for what the script compiles.
    """

    fast: bool
    xla: bool | None = None

    def choose_xla(self, model: keras.Model) -> None:
        """Makes a model compile its steps with XLA, or not, unless the script decides."""
        if self.xla is not None:
            model.jit_compile = self.xla


class StepFunctions:
    """Makes the functions that Keras calls for each batch.

    Args:
        engine: Computes the steps.
        comparison: Compares the batches of the ranks.
        options: How the steps compute.
    """

    def __init__(
        self, engine: StepEngine, comparison: BatchComparison, options: ScriptStepOptions
    ) -> None:
        self._engine = engine
        self._backend = engine.backend
        self._comparison = comparison
        self._options = options

    def install(self, hooks: Hooks) -> None:
        """Makes Keras call these functions."""
        if self._backend.replicas == 1 and not self._engine.virtual:
            hooks.replace(MAKE_FUNCTION, self._making_fast)
            hooks.replace(MAKE_PREDICT_FUNCTION, self._making_fast_prediction)
            return
        hooks.replace(MAKE_FUNCTION, self._making_sharded)
        hooks.replace(MAKE_PREDICT_FUNCTION, self._making_predict_function)
        hooks.replace(REDUCE_PER_REPLICA, lambda original: self._first_replica)

    def _first_replica(self, values: Any, strategy: Any, reduction: str) -> Any:
        """Returns the values of the first replica; they are the same on all."""
        local = strategy.experimental_local_results
        return keras.tree.map_structure(lambda value: local(value)[0], values)

    def _making_fast(self, original: Any) -> Any:
        """Makes the functions of a single replica: Keras' own, with the model in its fast form."""

        def make_function(model: keras.Model, step: Step) -> Any:
            self._options.choose_xla(model)
            if model.jit_compile or model.run_eagerly or has_own_train_step(model):
                return original(model, step)
            if self._options.fast:
                fuse_optimizer(model.optimizer)

            def fast_step(batch: Any) -> Any:
                with self._engine.fast_form(model):
                    return step(batch)

            return original(model, fast_step)

        return make_function

    def _making_fast_prediction(self, original: Any) -> Any:
        def make_predict_function(model: keras.Model, force: bool = False) -> None:
            self._options.choose_xla(model)
            if model.predict_function is None and not has_own_predict_step(model):
                own = model.predict_step

                def predict_step(batch: Any) -> Any:
                    with self._engine.fast_form(model):
                        return own(batch)

                with predicting_by(model, predict_step):
                    original(model, force)
            else:
                original(model, force)

        return make_predict_function

    def _making_sharded(self, original: Any) -> Any:
        def make_function(model: keras.Model, step: Step) -> Any:
            self._options.choose_xla(model)
            trains = getattr(step, "__name__", "") == "train_step"
            is_default = trains and not has_own_train_step(model) and model.optimizer is not None
            if is_default and self._options.fast and not model.jit_compile:
                fuse_optimizer(model.optimizer)
            elif trains and not is_default and model.jit_compile:
                log.warning("warning: XLA is off for a train_step of its own on several workers")
            with without_xla(model):
                function = original(model, self._sharded(model, step, is_default=is_default))
            if model.steps_per_execution > 1 and tf.distribute.has_strategy():
                return _step_by_step(model, function)
            return function

        return make_function

    def _sharded(self, model: keras.Model, step: Step, *, is_default: bool) -> Step:
        if self._engine.virtual:
            return self._virtual(model, self._engine.virtual, trains=is_default)
        compute = self._training(model) if is_default else self._calling(model, step)

        def in_replica(batch: Any) -> Any:
            rows, shard = self._own_part(batch)
            rider = self._comparison.rider(batch)
            if rider is not None:
                shard.riders.append(rider)
            self._engine.metrics.track(model)
            return self._global_logs(compute(rows, shard), shard)

        return in_replica

    def _virtual(self, model: keras.Model, virtual: VirtualWorkers, *, trains: bool) -> Step:
        """Returns Keras' own training or test step, computed in virtual workers' shards."""

        def in_replica(batch: Any) -> Any:
            whole = Shard(1, 1, may_be_empty=False)
            rider = self._comparison.rider(batch)
            if rider is not None:
                whole.riders.append(rider)
            self._engine.metrics.track(model)
            parts = virtual.cut(batch)
            if trains:
                self._engine.train(model, parts)
            else:
                self._engine.evaluate(model, parts)
            with computing(whole):
                return self._global_logs(model.get_metrics_result(), whole)

        return in_replica

    def _training(self, model: keras.Model) -> Callable[[Any, Shard], Any]:
        def train(rows: Any, shard: Shard) -> Any:
            return self._engine.train(model, [(rows, shard)])[0]

        return train

    def _calling(self, model: keras.Model, step: Step) -> Callable[[Any, Shard], Any]:
        def call(rows: Any, shard: Shard) -> Any:
            with self._engine.computing(model, shard):
                logs = step(rows)
                shard.restore()
                return logs

        return call

    def _global_logs(self, logs: Any, shard: Shard) -> Any:
        """Returns what a step returned, over all replicas.

        Results of metrics are global already, and stay as they are; any other scalar, such as a
        loss, is averaged by the rows.
        """
        flat = keras.tree.flatten(logs)
        numbers = [i for i, value in enumerate(flat) if _is_float_scalar(value)]
        own = [tf.cast(flat[i], tf.float64) * shard.weight for i in numbers]
        if own or shard.riders:
            zero = tf.zeros([], tf.float64)
            own = [tf.where(tf.equal(shard.rows, 0), zero, value) for value in own]
            for i, total in zip(numbers, shard.reduce_sum(self._backend, own), strict=True):
                flat[i] = tf.cast(total, getattr(flat[i], "dtype", tf.float32))
        return keras.tree.pack_sequence_as(logs, flat)

    def _making_predict_function(self, original: Any) -> Any:
        def make_predict_function(model: keras.Model, force: bool = False) -> None:
            self._options.choose_xla(model)
            if model.predict_function is not None and not force:
                return
            if has_own_predict_step(model):  # may look at the whole batch
                original(model, force)
            else:
                model.predict_function = self._predict_function(model)

        return make_predict_function

    def _own_part(self, batch: Any) -> tuple[Any, Shard]:
        return cut_batch(batch, self._backend.replica_id(), self._backend.replicas)

    def _predict_function(self, model: keras.Model) -> Any:
        backend, virtual = self._backend, self._engine.virtual

        def in_replica(batch: Any) -> Any:
            computed = []
            for rows, shard in virtual.cut(batch) if virtual else [self._own_part(batch)]:
                with computing(shard), self._engine.fast_form(model):
                    outputs = model.predict_step(rows)
                flat = keras.tree.flatten(outputs)
                if not all(_travels(value.dtype) for value in flat):
                    return model.predict_step(batch)  # no transport carries text or complex numbers
                computed.append([value[: shard.rows] for value in flat])
            flat = [tf.concat(each, 0) for each in zip(*computed, strict=True)]
            return keras.tree.pack_sequence_as(outputs, backend.gather_rows(flat))

        def one_batch(batch: Any) -> Any:
            return backend.run(without_optionals(model, in_replica), batch)[0]

        @tf.autograph.experimental.do_not_convert
        def predict_function(batches: Any) -> Any:
            outputs = [one_batch(batch) for batch in batches]
            return keras.tree.map_structure(lambda *parts: tf.concat(parts, 0), *outputs)

        if model.run_eagerly:
            return predict_function
        return tf.function(predict_function, reduce_retracing=True)


def _step_by_step(model: keras.Model, function: Any) -> Any:
    """Runs the steps of an execution one by one, since Keras' loop of them fails in a strategy."""

    def run(iterator: Any) -> Any:
        logs = None
        for step in range(model.steps_per_execution):
            try:
                with one_step_an_execution(model):
                    logs = function(iterator)
            except (StopIteration, tf.errors.OutOfRangeError):
                if step == 0:
                    raise
                break
        return logs

    return run


def _travels(dtype: tf.DType) -> bool:
    return bool(dtype.is_floating or dtype.is_integer or dtype.is_bool)


def _is_float_scalar(value: Any) -> bool:
    if isinstance(value, float):
        return True
    dtype = getattr(value, "dtype", None)
    return dtype is not None and tf.as_dtype(dtype).is_floating and len(value.shape) == 0
