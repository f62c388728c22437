"""Learning-rate schedules: a linear rise, then the course that the configuration names."""

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

import keras
import tensorflow as tf

from distcnn.config import OptimizerConfig
from distcnn.config.lookup import look_up
from distcnn.optim.catalog import SCHEDULES

_ONE_CYCLE_RISE = 0.3
"""Fraction of a run over which one_cycle rises."""


@dataclass(frozen=True)
class Span:
    """The steps that a schedule covers.

    Attributes:
        steps_per_epoch: Steps of an epoch.
        total_steps: Steps of the whole run.
        rise_steps: Steps of the rise at its start; may be a fraction.
    """

    steps_per_epoch: int
    total_steps: int
    rise_steps: float


def rise_steps(config: OptimizerConfig, warmup_steps: float, total_steps: int) -> float:
    """Returns over how many steps the rate rises at the start."""
    return _ONE_CYCLE_RISE * total_steps if config.schedule == "one_cycle" else warmup_steps


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
        self._span = Span(steps_per_epoch, total_steps, rise_steps(config, warmup, total_steps))
        self._factor = look_up("optimizer.schedule", config.schedule, SCHEDULES)

    def __call__(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the float32 rate of the step (counted from 0)."""
        step = tf.cast(step, tf.float32)
        rate = self._peak * self._factor(self._config, step, self._span)
        if self._span.rise_steps > 0:
            risen = tf.minimum((step + 1) / self._span.rise_steps, 1.0)
            rising = self._start + (self._peak - self._start) * risen
            rate = tf.where(step < self._span.rise_steps, rising, rate)
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


def constant(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Keeps the peak rate."""
    return tf.ones_like(step)


def step_decay(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Multiplies by `step_factor` at each of `step_epochs`."""
    boundaries = tf.constant(config.step_epochs) * float(span.steps_per_epoch)
    passed = tf.reduce_sum(tf.cast(step >= boundaries, tf.float32))
    return config.step_factor**passed


def cosine(config: OptimizerConfig, step: tf.Tensor, span: Span) -> tf.Tensor:
    """Falls to `final_lr_factor` along half a cosine (Loshchilov and Hutter 2017, equation 5)."""
    falling = max(span.total_steps - span.rise_steps, 1.0)
    progress = tf.clip_by_value((step - span.rise_steps) / falling, 0.0, 1.0)
    height = 0.5 * (1 + tf.cos(math.pi * progress))
    return config.final_lr_factor + (1 - config.final_lr_factor) * height
