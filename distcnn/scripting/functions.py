"""The functions that Keras' `fit`, `evaluate` and `predict` call for each batch, on every replica.

Keras' own loops run unchanged. What they call is made here: each replica cuts its rows from the
batch, runs the model's own step on them, and returns the results over all replicas.
"""

import contextlib
import logging
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.distribute.layers import SynchronisedBatchNorm
from distcnn.engine.fast import can_be_fast, computing_fast, fuse_optimizer
from distcnn.engine.metrics import GlobalMetrics
from distcnn.engine.reduction import GradientReduction
from distcnn.engine.shard import Shard, computing, current_shard, cut_batch
from distcnn.runtime.keras_hooks import (
    MAKE_FUNCTION,
    MAKE_PREDICT_FUNCTION,
    REDUCE_PER_REPLICA,
    Hooks,
    default_train_step,
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
        sync_batchnorm: Whether batch normalisation uses the rows of all replicas.
        xla: Whether XLA compiles the steps, or None for what the script compiles.
    """

    fast: bool
    sync_batchnorm: bool
    xla: bool | None = None

    def choose_xla(self, model: keras.Model) -> None:
        """Makes a model compile its steps with XLA, or not, unless the script decides."""
        if self.xla is not None:
            model.jit_compile = self.xla


class StepFunctions:
    """Makes the functions that Keras calls for each batch.

    Args:
        backend: Runs the replicas.
        reduction: Reduces the gradients.
        metrics: Adds up the metrics.
        comparison: Compares the batches of the ranks.
        options: How the steps compute.
    """

    def __init__(
        self,
        backend: Backend,
        reduction: GradientReduction,
        metrics: GlobalMetrics,
        comparison: BatchComparison,
        options: ScriptStepOptions,
    ) -> None:
        self._backend = backend
        self._reduction = reduction
        self._metrics = metrics
        self._comparison = comparison
        self._options = options
        self._synchronised: weakref.WeakKeyDictionary[keras.Model, SynchronisedBatchNorm]
        self._synchronised = weakref.WeakKeyDictionary()

    def install(self, hooks: Hooks) -> None:
        """Makes Keras call these functions."""
        if self._backend.replicas == 1:
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
                with self._fast(model):
                    return step(batch)

            return original(model, fast_step)

        return make_function

    def _making_fast_prediction(self, original: Any) -> Any:
        def make_predict_function(model: keras.Model, force: bool = False) -> None:
            self._options.choose_xla(model)
            if model.predict_function is None and not has_own_predict_step(model):
                own = model.predict_step

                def predict_step(batch: Any) -> Any:
                    with self._fast(model):
                        return own(batch)

                with predicting_by(model, predict_step):
                    original(model, force)
            else:
                original(model, force)

        return make_predict_function

    def _fast(self, model: keras.Model) -> contextlib.AbstractContextManager[None]:
        """Returns the context in which a step of the model is traced."""
        if not self._options.fast or model.jit_compile or not can_be_fast(model):
            return contextlib.nullcontext()
        return computing_fast(model, self._synchronised.get(model))

    def _making_sharded(self, original: Any) -> Any:
        def make_function(model: keras.Model, step: Step) -> Any:
            self._options.choose_xla(model)
            trains = getattr(step, "__name__", "") == "train_step"
            if trains and not has_own_train_step(model) and model.optimizer is not None:
                step = self._own_train_step(model)
                if self._options.fast and not model.jit_compile:
                    fuse_optimizer(model.optimizer)
            elif trains and model.jit_compile:
                log.warning("warning: XLA is off for a train_step of its own on several workers")
            with without_xla(model):
                function = original(model, self._sharded(model, step))
            if model.steps_per_execution > 1 and tf.distribute.has_strategy():
                return _step_by_step(model, function)
            return function

        return make_function

    def _sharded(self, model: keras.Model, step: Step) -> Step:
        backend = self._backend

        def in_replica(batch: Any) -> Any:
            rows, shard = cut_batch(batch, backend.replica_id(), backend.replicas)
            rider = self._comparison.rider(batch)
            if rider is not None:
                shard.riders.append(rider)
            self._metrics.track(model)
            if shard.may_be_empty:
                self._remember(model, shard)
            with computing(shard), self._synchronising(model, shard), self._fast(model):
                logs = step(rows)
                shard.restore()
                return self._global_logs(logs, shard)

        return in_replica

    @contextlib.contextmanager
    def _synchronising(self, model: keras.Model, shard: Shard) -> Iterator[None]:
        """Makes batch normalisation use the rows of all replicas, where that is asked for."""
        counts = tf.cast(tf.greater(shard.rows, 0), tf.float32)
        weight = shard.weight if has_own_train_step(model) else None
        with self._synchronised_of(model).counting(counts, weight):
            yield

    def _synchronised_of(self, model: keras.Model) -> SynchronisedBatchNorm:
        if model not in self._synchronised:
            self._synchronised[model] = SynchronisedBatchNorm(
                model, self._backend, every_layer=self._options.sync_batchnorm
            )
        return self._synchronised[model]

    def _own_train_step(self, model: keras.Model) -> Step:
        def train_step(data: Any) -> Any:
            shard = current_shard()
            assert shard is not None

            def reduce_and_apply(gradients: Any, variables: Any) -> None:
                with self._reduction.of_weighted_loss():
                    model.optimizer.apply_gradients(zip(gradients, variables, strict=True))

            return default_train_step(
                model, data, reduce_and_apply=reduce_and_apply, weight=shard.weight
            )

        return train_step

    def _remember(self, model: keras.Model, shard: Shard) -> None:
        """Keeps what a row that does not count would change.

        Statistics over the rows of all replicas are right on each of them.
        """
        layers = self._synchronised_of(model).layers
        right = {id(variable) for layer in layers for variable in layer.variables}
        for variable in [*self._metrics.variables(model), *model.non_trainable_variables]:
            is_float = variable.dtype in ("float16", "bfloat16", "float32", "float64")
            if is_float and id(variable) not in right:
                value = tf.identity(tf.convert_to_tensor(variable.value))
                shard.before[id(variable)] = (variable, value)

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

    def _predict_function(self, model: keras.Model) -> Any:
        backend = self._backend

        def in_replica(batch: Any) -> Any:
            rows, shard = cut_batch(batch, backend.replica_id(), backend.replicas)
            with computing(shard), self._fast(model):
                outputs = model.predict_step(rows)
            flat = keras.tree.flatten(outputs)
            if not all(_travels(value.dtype) for value in flat):
                return model.predict_step(batch)  # no transport carries text or complex numbers
            flat = [value[: shard.rows] for value in flat]
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
