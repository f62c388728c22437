"""Metrics of the global batch: states are added over the replicas when a result is computed.

The states of Keras' metrics are sums and counts, so that results of added states are exact: AUC,
F1, Precision and MeanIoU as much as means.
"""

import weakref
from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.shard import current_shard
from distcnn.runtime.keras_fit import plain_logs
from distcnn.runtime.keras_hooks import MEAN_UPDATE, METRICS_RESULT, SUM_UPDATE, Hooks
from distcnn.runtime.keras_steps import in_stateless_scope, reading


class GlobalMetrics:
    """Makes the metrics of a model give the results over all replicas.

    Args:
        backend: Sums over the replicas.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._models: weakref.WeakSet[keras.Model] = weakref.WeakSet()
        self._wrapped: weakref.WeakSet[Any] = weakref.WeakSet()

    def install(self, hooks: Hooks) -> None:
        """Makes Keras compute the results of all replicas."""
        hooks.replace(METRICS_RESULT, self._global_results)
        hooks.replace(MEAN_UPDATE, _weighting_scalars)
        hooks.replace(SUM_UPDATE, _weighting_scalars)

    def track(self, model: keras.Model) -> None:
        """Makes every metric of a model, read alone, give the result over all replicas."""
        self._models.add(model)
        for metric in _all_metrics(model):
            if metric not in self._wrapped:
                self._wrapped.add(metric)
                metric.result = self._global_result(metric, metric.result)

    def release(self) -> None:
        """Gives the metrics back their own results."""
        for metric in self._wrapped:
            del metric.result
        self._wrapped.clear()
        self._models.clear()

    def variables(self, model: keras.Model) -> list[Any]:
        """Returns the variables of a model's metrics."""
        found = {id(v): v for metric in _all_metrics(model) for v in metric.variables}
        return list(found.values())

    def results(self, model: keras.Model) -> dict[str, Any]:
        """Returns a model's metrics over all replicas, between steps; called in all processes."""
        with self._backend.scope(), reading(self._added_up(self.variables(model))):
            return plain_logs(model.get_metrics_result())

    def reset(self, model: keras.Model) -> None:
        """Resets a model's metrics, between steps."""
        with self._backend.scope():
            model.reset_metrics()

    def totals(self, model: keras.Model) -> list[np.ndarray]:
        """Returns the state of each metric variable over all replicas; called in all processes."""
        variables = self.variables(model)
        with self._backend.scope():
            totals = {id(variable): total for variable, total in self._added_up(variables)}
            return [np.asarray(totals.get(id(v), v)) for v in variables]

    def assign_totals(self, model: keras.Model, totals: Sequence[np.ndarray]) -> None:
        """Makes the states of all replicas add up to what `totals` returned."""
        is_counted = self._backend.is_chief or self._backend.adds_up_metrics
        with self._backend.scope():
            for variable, total in zip(self.variables(model), totals, strict=True):
                variable.assign(total if is_counted else np.zeros_like(total))

    def _global_results(self, original: Any) -> Any:
        def get_metrics_result(model: keras.Model) -> Any:
            if model in self._models:
                self.track(model)  # some metrics are only built by the first batch
            shard = current_shard()
            # A virtual worker's shard counts alone; its metrics are read after all shards.
            alone = shard is not None and shard.index is not None
            if model not in self._models or in_stateless_scope() or alone:
                return original(model)
            with reading(self._added_up(self.variables(model))):
                return _as_read(original(model))

        return get_metrics_result

    def _global_result(self, metric: Any, original: Any) -> Any:
        def result(*arguments: Any, **keywords: Any) -> Any:
            if in_stateless_scope():
                return original(*arguments, **keywords)
            with reading(self._added_up(metric.variables)):
                return _as_read(original(*arguments, **keywords))

        return result

    def _added_up(self, variables: Sequence[Any]) -> list[tuple[Any, tf.Tensor]]:
        shard, backend = current_shard(), self._backend
        if not variables or (shard is None and backend.size == 1):
            return []
        if shard is not None:
            sums = shard.reduce_sum(backend, [shard.value(variable) for variable in variables])
            return list(zip(variables, sums, strict=True))
        if backend.adds_up_metrics:
            return []
        own = [np.asarray(tf.convert_to_tensor(variable.value)) for variable in variables]
        flat = backend.sum(np.concatenate([values.ravel().astype(np.float64) for values in own]))
        ends = np.cumsum([values.size for values in own])[:-1]
        parts = zip(variables, own, np.split(flat, ends), strict=True)
        return [(v, tf.constant(p.reshape(o.shape), o.dtype)) for v, o, p in parts]


def _as_read(results: Any) -> Any:
    """Replaces variables, which some metrics return themselves, by what they read as now."""

    def read(result: Any) -> Any:
        is_variable = isinstance(result, keras.Variable)
        return tf.convert_to_tensor(result.value) if is_variable else result

    return keras.tree.map_structure(read, results)


def _all_metrics(model: keras.Model) -> list[Any]:
    found: dict[int, Any] = {}
    queue = list(model.metrics)
    while queue:
        metric = queue.pop()
        if id(metric) not in found:
            found[id(metric)] = metric
            queue += [m for m in getattr(metric, "_metrics", []) if m is not metric]
    return list(found.values())


def _weighting_scalars(original: Any) -> Any:
    """Lets a scalar, such as the loss of a batch, count by the shard's fraction of the batch."""

    def update_state(self: Any, values: Any, sample_weight: Any = None) -> Any:
        shard = current_shard()
        if shard is not None and sample_weight is None:
            values = keras.ops.convert_to_tensor(values)
            if len(values.shape) == 0:
                sample_weight = shard.weight
        return original(self, values, sample_weight)

    return update_state
