"""Builds optimizers, and scales the learning rate to the global batch."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import keras

from distcnn.config import OptimizerConfig
from distcnn.config.lookup import look_up
from distcnn.optim.catalog import OPTIMIZERS
from distcnn.optim.fused_updates import fuse_updates
from distcnn.optim.lars import Lars
from distcnn.optim.schedules import Schedule
from distcnn.runtime.keras_internals import scale_weight_decay, variable_index


def scaled_learning_rate(config: OptimizerConfig, global_batch_size: int) -> float:
    """Returns the base learning rate scaled to the global batch.

    The linear rule is from Goyal et al. 2017, "Accurate, Large Minibatch SGD"; the square-root
    rule, usual for Adam, from Krizhevsky 2014, "One weird trick", section 5.
    """
    factor = global_batch_size / config.base_batch_size
    return config.lr * {"none": 1.0, "linear": factor, "sqrt": math.sqrt(factor)}[config.lr_scaling]


def rate_is_scheduled(config: OptimizerConfig) -> bool:
    """Returns whether the learning rate follows a schedule rather than being a plain number."""
    return config.schedule != "constant" or config.warmup_epochs > 0


def learning_rate(
    config: OptimizerConfig, peak: float, steps_per_epoch: int, total_steps: int
) -> float | Schedule:
    """Returns the optimizer's learning rate: a number if it is constant, else a `Schedule`.

    A callback of the user can change a plain number, but not a schedule.
    """
    if not rate_is_scheduled(config):
        return peak
    return Schedule(config, peak, steps_per_epoch, total_steps)


def plain_optimizer(
    config: OptimizerConfig, rate: float, model: keras.Model
) -> keras.optimizers.Optimizer:
    """Builds an optimizer that plain Keras can load with a saved model: SGD replaces LARS."""
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
    factors: Sequence[float] | None = None,
) -> keras.optimizers.Optimizer:
    """Builds the optimizer and creates its variables.

    Args:
        config: The optimizer section of the configuration.
        rate: Learning rate or schedule.
        model: Built model whose trainable variables the optimizer will update.
        dtype_policy: Keras dtype policy; mixed_float16 adds dynamic loss scaling.
        fused: Whether adam, adamw and sgd update each variable in a single operation.
        factors: Factor on the learning rate of each trainable variable. Default: 1.

    Returns:
        A built Keras optimizer.
    """
    common: dict[str, Any] = {"learning_rate": rate, "global_clipnorm": config.clip_norm or None}
    optimizer: keras.optimizers.Optimizer = look_up("optimizer.name", config.name, OPTIMIZERS)(
        config, common
    )
    if config.weight_decay and not isinstance(optimizer, Lars):  # Lars skips vectors itself
        vectors = [v for v in model.trainable_variables if len(v.shape) < 2]
        optimizer.exclude_from_weight_decay(var_list=vectors)
    if fused:
        fuse_updates(optimizer)
    if config.bias_lr_factor != 1:
        _scale_rate_of_vectors(optimizer, config.bias_lr_factor)
    if factors is not None:
        _scale_rates(optimizer, factors)
    if dtype_policy == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    optimizer.build(model.trainable_variables)
    return optimizer


def _scale_rate_of_vectors(optimizer: keras.optimizers.Optimizer, factor: float) -> None:
    """Makes an optimizer update biases and normalisation weights at another learning rate."""
    plain = optimizer.update_step

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        is_vector = len(variable.shape) < 2
        plain(gradient, variable, learning_rate * factor if is_vector else learning_rate)

    optimizer.update_step = update_step


def _scale_rates(optimizer: keras.optimizers.Optimizer, factors: Sequence[float]) -> None:
    """Makes an optimizer update and decay each variable at another learning rate."""
    plain = optimizer.update_step

    def factor_of(variable: Any) -> float:
        return factors[variable_index(optimizer, variable)]

    def update_step(gradient: Any, variable: Any, learning_rate: Any) -> None:
        plain(gradient, variable, learning_rate * factor_of(variable))

    optimizer.update_step = update_step
    scale_weight_decay(optimizer, factor_of)


def adam(config: OptimizerConfig, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    """Adam (Kingma and Ba 2015)."""
    return keras.optimizers.Adam(**common)


def adamw(config: OptimizerConfig, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    """AdamW (Loshchilov and Hutter 2019)."""
    return keras.optimizers.AdamW(weight_decay=config.weight_decay, **common)


def sgd(config: OptimizerConfig, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    """SGD with Nesterov momentum, and decoupled weight decay."""
    return keras.optimizers.SGD(
        momentum=float(config.momentum),
        nesterov=config.momentum > 0,
        weight_decay=config.weight_decay or None,
        **common,
    )


def lars(config: OptimizerConfig, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    """LARS (You, Gitman and Ginsburg 2017)."""
    decay = config.weight_decay or None
    return Lars(momentum=float(config.momentum), weight_decay=decay, **common)


def lamb(config: OptimizerConfig, common: dict[str, Any]) -> keras.optimizers.Optimizer:
    """LAMB (You et al. 2020)."""
    return keras.optimizers.Lamb(weight_decay=config.weight_decay or None, **common)
