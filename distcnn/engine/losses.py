"""Losses of a shard: each counts so that the weighted sum over the replicas is the batch's loss.

The sum over the replicas of `shard.weight` times the value must be what one device computes of the
whole batch. A mean over the rows fulfils that as it is. Other reductions need a factor:

- `sum`: rows of the batch / rows of the shard;
- `mean_with_sample_weight`, and means over what a mask leaves: the shard's fraction of the weights
  instead of its fraction of the rows.
"""

from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.shard import Shard, current_shard
from distcnn.errors import UsageError
from distcnn.runtime.keras_hooks import LOSS_CALL, SCALE_LOSS, UNSCALE_LOSS, FunctionMaker, Hooks


def install_loss_hooks(hooks: Hooks, backend: Backend) -> None:
    """Makes Keras' losses count as parts of the global batch's."""
    hooks.replace(LOSS_CALL, _scaled_call(backend))
    # Keras' own factors under tf.distribute suppose shards of equal size.
    for point in (SCALE_LOSS, UNSCALE_LOSS):
        hooks.replace(point, lambda original: lambda value: value)


def _scaled_call(backend: Backend) -> FunctionMaker:
    def make(original: Any) -> Any:
        def call(self: Any, y_true: Any, y_pred: Any, sample_weight: Any = None) -> Any:
            value = original(self, y_true, y_pred, sample_weight)
            shard = current_shard()
            if shard is None:
                return value
            factor = _factor(self, y_pred, sample_weight, shard, backend)
            return value if factor is None else value * tf.cast(factor, value.dtype)

        return call

    return make


def _factor(
    loss: keras.Loss, y_pred: Any, sample_weight: Any, shard: Shard, backend: Backend
) -> tf.Tensor | None:
    if loss.reduction == "sum":
        return shard.inverse_weight
    mask = getattr(y_pred, "_keras_mask", None)
    is_mean = loss.reduction in ("sum_over_batch_size", "mean")
    weighted = loss.reduction == "mean_with_sample_weight" and sample_weight is not None
    if not (weighted or (mask is not None and (is_mean or weighted))):
        return None
    if shard.index is not None:
        raise UsageError(
            "virtual_workers is set, but the loss counts by sample weights or a mask, whose "
            "sum over the batch is not known to a shard; drop virtual_workers"
        )
    own = _sum_of_weights(mask, sample_weight if weighted else None, y_pred)
    own = tf.where(tf.equal(shard.rows, 0), tf.zeros_like(own), own)
    total = backend.sum_in_pass([own])[0]
    return tf.cast(tf.math.divide_no_nan(own, total), tf.float64) * shard.inverse_weight


def _sum_of_weights(mask: Any, sample_weight: Any, y_pred: Any) -> tf.Tensor:
    weights = tf.constant(1.0, tf.float64)
    if sample_weight is not None:
        weights = tf.cast(sample_weight, tf.float64)
    if mask is not None:
        mask = tf.cast(mask, tf.float64)
        while weights.shape.rank and weights.shape.rank < mask.shape.rank:
            weights = tf.expand_dims(weights, -1)
        weights = mask * weights
    return tf.reduce_sum(weights)
