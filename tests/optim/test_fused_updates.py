"""Fused updates are Keras' updates."""

import functools
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.optim.fused_updates import fuse_updates

OPTIMIZERS: list[tuple[str, dict[str, Any]]] = [
    ("Adam", {"learning_rate": 0.01, "global_clipnorm": 0.5}),
    ("AdamW", {"learning_rate": 0.01, "weight_decay": 0.1}),
    ("SGD", {"learning_rate": 0.1}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "weight_decay": 0.01}),
    ("SGD", {"learning_rate": 0.1, "momentum": 0.9, "nesterov": True}),
]


def apply_sines(optimizer: Any, variables: list[keras.Variable], number: tf.Tensor) -> None:
    gradients = [tf.sin(tf.cast(number, v.dtype) + v.value) for v in variables]
    optimizer.apply(gradients, variables)


def test_variables_of_other_types_are_updated_by_keras() -> None:
    optimizer = keras.optimizers.SGD(0.5)
    fuse_updates(optimizer)
    variable = keras.Variable(np.ones(4), dtype="float64")
    optimizer.apply([tf.fill([4], tf.constant(0.2, tf.float64))], [variable])
    assert np.allclose(variable, 0.9)


@pytest.mark.parametrize(("name", "settings"), OPTIMIZERS)
def test_fused_updates_are_keras_updates(name: str, settings: dict[str, Any]) -> None:
    weights = []
    for fused in (False, True):
        keras.utils.set_random_seed(1)
        constraint = keras.constraints.MaxNorm(0.5)
        variables = [
            keras.Variable(np.random.default_rng(0).normal(size=(7, 5)).astype("float32")),
            keras.Variable(np.ones(3, "float32"), constraint=constraint),
        ]
        optimizer = getattr(keras.optimizers, name)(**settings)
        if fused:
            fuse_updates(optimizer)
        optimizer.build(variables)

        step = tf.function(functools.partial(apply_sines, optimizer, variables))
        for number in range(20):
            step(tf.constant(float(number)))
        weights.append([v.numpy() for v in [*variables, *optimizer.variables]])
    for plain, fused in zip(*weights, strict=True):
        assert np.allclose(plain, fused, rtol=2e-5, atol=1e-6)
