"""Learning-rate schedules: a linear warm-up, then the configured curve."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import keras
import tensorflow as tf
from typing_extensions import override

from distcnn.config import OptimizerConfig
from distcnn.config.lookup import look_up
from distcnn.optim.catalog import SCHEDULES

_ONE_CYCLE_RISE = 0.3
"""Fraction of the run over which one_cycle warms up."""


@dataclass(frozen=True)
class Span:
    """Length of a schedule.

    Attributes:
        steps_per_epoch: Steps per epoch.
        total_steps: Steps of the whole run.
        rise_steps: Steps of the initial warm-up; need not be a whole number.
    """

    steps_per_epoch: int
    total_steps: int
    rise_steps: float


def rise_steps(config: OptimizerConfig, warmup_steps: float, total_steps: int) -> float:
    """Returns the number of steps of the initial warm-up."""
    return _ONE_CYCLE_RISE * total_steps if config.schedule == "one_cycle" else warmup_steps


@keras.saving.register_keras_serializable("distcnn")
class Schedule(keras.optimizers.schedules.LearningRateSchedule):
    """Learning rate as a function of the optimizer's step.

    Args:
        config: The optimizer section of the configuration.
        peak: Scaled learning rate, reached at the end of the warm-up.
        steps_per_epoch: Steps per epoch.
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
        self._span = Span(steps_per_epoch, total_steps, rise_steps(config, warmup, total_steps))
        self._factor = look_up("optimizer.schedule", config.schedule, SCHEDULES)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the learning rate of a step (counted from 0) as a float32 scalar."""
        step = tf.cast(step, tf.float32)
        rate = self._peak * self._factor(self._config, step, self._span)
        if self._span.rise_steps > 0:
            progress = tf.minimum((step + 1) / self._span.rise_steps, 1.0)
            warming_up = self._start + (self._peak - self._start) * progress
            rate = tf.where(step < self._span.rise_steps, warming_up, rate)
        return rate

    @override
    def get_config(self) -> dict[str, Any]:
        return {
            "config": asdict(self._config),
            "peak": self._peak,
            "steps_per_epoch": self._steps_per_epoch,
            "total_steps": self._total_steps,
        }

    @classmethod
    @override
    def from_config(cls, config: dict[str, Any]) -> Self:
        return cls(**{**config, "config": OptimizerConfig(**config["config"])})


def constant(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Keeps the peak rate."""
    return tf.ones_like(step)


def step_decay(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Multiplies the rate by `step_factor` at each of `step_epochs`."""
    boundaries = tf.constant(config.step_epochs) * float(span.steps_per_epoch)
    passed = tf.reduce_sum(tf.cast(step >= boundaries, tf.float32))
    return config.step_factor**passed


def cosine(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Decays to `final_lr_factor` along a half cosine (Loshchilov and Hutter 2017, equation 5)."""
    decay_steps = max(span.total_steps - span.rise_steps, 1.0)
    progress = tf.clip_by_value((step - span.rise_steps) / decay_steps, 0.0, 1.0)
    decay = 0.5 * (1 + tf.cos(math.pi * progress))
    return config.final_lr_factor + (1 - config.final_lr_factor) * decay
