"""Optimizers, learning-rate schedules and scaling rules."""

import math
from dataclasses import asdict, replace
from typing import Any, Self

import keras
import tensorflow as tf

from distcnn.config import OptimizerConfig
from distcnn.optim.fused_updates import fuse_updates
from distcnn.optim.lars import Lars


def scaled_learning_rate(config: OptimizerConfig, global_batch_size: int) -> float:
    """Returns the base rate scaled to the global batch.

    Linear: Goyal et al. 2017, "Accurate, Large Minibatch SGD". Root: Krizhevsky 2014, "One weird
    trick", section 5; the usual rule for Adam.
    """
    factor = global_batch_size / config.base_batch_size
    return config.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]


@keras.saving.register_keras_serializable("distcnn")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate as a function of the optimizer's step.

    Args:
        config: Names the course of the rate.
        peak: Scaled learning rate.
        steps_per_epoch: Turns epochs into steps.
        total_steps: Steps of the whole run.
    """

    def __init__(
        self, config: OptimizerConfig, peak: float, steps_per_epoch: int, total_steps: int
    ) -> None:
        self._config = config
        self._peak = peak
        self._steps_per_epoch = steps_per_epoch
        self._total_steps = total_steps
        warmup = config.warmup_epochs * steps_per_epoch
        self._start = config.lr if warmup and config.lr < peak else 0.0
        self._rise_steps = 0.3 * total_steps if config.schedule == "one_cycle" else warmup

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the float32 rate of the step (counted from 0)."""
        step = tf.cast(step, tf.float32)
        rate = self._peak * self._after_rise(step)
        if self._rise_steps > 0:
            risen = tf.minimum((step + 1) / self._rise_steps, 1.0)
            rising = self._start + (self._peak - self._start) * risen
            rate = tf.where(step < self._rise_steps, rising, rate)
        return rate

    def get_config(self) -> dict[str, Any]:
        """Returns what describes the schedule, for models that are saved with their optimizer."""
        return {
            "config": asdict(self._config),
            "peak": self._peak,
            "steps_per_epoch": self._steps_per_epoch,
            "total_steps": self._total_steps,
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """Rebuilds the schedule from `get_config`."""
        return cls(**{**config, "config": OptimizerConfig(**config["config"])})

    def _after_rise(self, step: tf.Tensor) -> tf.Tensor:
        config = self._config
        if config.schedule == "constant":
            return tf.ones_like(step)
        if config.schedule == "step":
            boundaries = tf.constant(config.step_epochs) * float(self._steps_per_epoch)
            passed = tf.reduce_sum(tf.cast(step >= boundaries, tf.float32))
            return config.step_factor**passed
        falling = max(self._total_steps - self._rise_steps, 1.0)
        progress = tf.clip_by_value((step - self._rise_steps) / falling, 0.0, 1.0)
        fraction = 0.5 * (1 + tf.cos(math.pi * progress))
        return config.final_lr_factor + (1 - config.final_lr_factor) * fraction


def learning_rate(
    config: OptimizerConfig, peak: float, steps_per_epoch: int, total_steps: int
) -> float | Schedule:
    """Returns the rate for the optimizer: a number if it never changes, else a `Schedule`.

    With a plain number a user's own learning-rate callback can set it.
    """
    if config.schedule == "constant" and config.warmup_epochs == 0:
        return peak
    return Schedule(config, peak, steps_per_epoch, total_steps)


def plain_optimizer(
    config: OptimizerConfig, rate: float, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Builds an optimizer that Keras alone can load with a saved model: SGD stands in for LARS."""
    if config.name == "lars":
        config = replace(config, name="sgd")
    return build_optimizer(config, rate, model, "float32", fused=False)


def build_optimizer(
    config: OptimizerConfig,
    rate: float | Schedule,
    model: keras.Model,
    dtype_policy: str,
    *,
    fused: bool = True,
) -> keras.optimizers.Optimizer:
    """Builds the optimizer with its variables.

    Args:
        config: Names the optimizer.
        rate: Learning rate or schedule.
        model: Built model whose trainable variables it will update.
        dtype_policy: Keras dtype policy; mixed_float16 adds dynamic loss scaling.
        fused: Whether adam, adamw and sgd update each variable in one operation.

    Returns:
        A built Keras optimizer.
    """
    common: dict[str, Any] = {"learning_rate": rate, "global_clipnorm": config.clip_norm or None}
    decay = config.weight_decay or None
    if config.name == "adam":
        optimizer = keras.optimizers.Adam(**common)
    elif config.name == "adamw":
        optimizer = keras.optimizers.AdamW(weight_decay=config.weight_decay, **common)
    elif config.name == "lamb":
        optimizer = keras.optimizers.Lamb(weight_decay=decay, **common)
    elif config.name == "lars":
        optimizer = Lars(momentum=float(config.momentum), weight_decay=decay, **common)
    else:
        nesterov = config.momentum > 0
        optimizer = keras.optimizers.SGD(
            momentum=float(config.momentum), nesterov=nesterov, weight_decay=decay, **common
        )
    if decay and config.name != "lars":  # which leaves vectors out by itself
        vectors = [v for v in model.trainable_variables if len(v.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    if fused:
        fuse_updates(optimizer)
    if dtype_policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer
