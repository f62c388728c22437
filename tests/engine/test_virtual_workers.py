"""Virtual workers on one device: what a step of several shards computes, and what is refused."""

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from distcnn.config import Config, DistributeConfig, ScriptConfig, TrainConfig
from distcnn.distribute.tensorflow import OneDevice
from distcnn.engine.step import StepEngine
from distcnn.engine.virtual_workers import VirtualWorkers
from distcnn.errors import UsageError


class Noise(layers.Layer):
    """Draws random numbers from Keras' global generator."""

    def call(self, x: Any) -> Any:
        return x + keras.random.normal((1,))


def compiled(*body: layers.Layer, inputs: Any = None, optimizer: Any = None) -> keras.Model:
    keras.utils.set_random_seed(3)
    inputs = keras.Input((3,)) if inputs is None else inputs
    model = keras.Sequential([inputs, *body, layers.Dense(1)])
    model.compile(optimizer or keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    model._compile_metrics.build(tf.zeros((1, 1)), tf.zeros((1, 1)))
    model.optimizer.build(model.trainable_weights)
    return model


def step(model: keras.Model, x: np.ndarray, y: np.ndarray, shards: int) -> StepEngine:
    engine = StepEngine(OneDevice(), fast=False, sync_batchnorm=False, virtual_workers=shards)
    assert engine.virtual is not None
    with engine.installed():
        engine.train(model, engine.virtual.cut((tf.constant(x), tf.constant(y))))
    return engine


X = np.random.default_rng(0).normal(size=(7, 3)).astype(np.float32)
Y = X[:, :1]


def test_state_changes_by_the_mean_over_the_shards_and_once_a_step():
    norm, dropout = layers.BatchNormalization(momentum=0.9), layers.Dropout(0.5)
    model = compiled(norm, dropout)
    norm.moving_mean.assign([5.0, 0.0, -2.0])
    before = model.get_weights()
    step(model, X, Y, 2)
    means = np.mean([X[:3].mean(0), X[3:].mean(0)], 0)
    expected = 0.9 * np.array([5.0, 0.0, -2.0]) + 0.1 * means
    np.testing.assert_allclose(norm.moving_mean, expected, rtol=1e-6)
    assert dropout.seed_generator.state.numpy()[1] == 1
    assert int(model.optimizer.iterations.numpy()) == 1
    assert not np.array_equal(before[-2], model.get_weights()[-2])


def test_shards_draw_different_dropout():
    model = compiled(layers.Dropout(0.5))
    masks, original = [], model.layers[0].call

    def call(x: Any, training: bool = False) -> Any:
        masks.append(original(x, training))
        return masks[-1]

    model.layers[0].call = call
    step(model, np.ones((8, 3), np.float32), np.zeros((8, 1), np.float32), 2)
    assert len(masks) == 2
    assert not np.array_equal(*masks)


@pytest.mark.parametrize("shards", [2, 3, 8])
def test_loss_metrics_and_gradients_are_those_of_the_whole_batch(shards):
    """With 8 shards, one of them is empty."""
    plain, model = compiled(), compiled()
    logs = plain.train_on_batch(X, Y, return_dict=True)
    engine = step(model, X, Y, shards)
    results = engine.metrics.results(model)
    assert results == pytest.approx(logs, rel=1e-6)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-7)
    step(model, X, Y, shards)
    assert float(model.metrics[0].count.numpy()) == 2 * len(X)


def test_rows_of_an_embedding_are_joined():
    def words() -> keras.Model:
        body = (layers.Embedding(5, 4), layers.Flatten())
        inputs = keras.Input((3,), dtype="int32")
        return compiled(*body, inputs=inputs, optimizer=keras.optimizers.Adam(0.1))

    x = np.array([[0, 1, 1], [1, 2, 4], [4, 4, 0]], np.int32)
    plain, model = words(), words()
    plain.train_on_batch(x, Y[:3])
    step(model, x, Y[:3], 3)
    for ours, theirs in zip(model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_what_a_shard_cannot_compute_alone_is_refused():
    class Four(OneDevice):
        size = 4

    with pytest.raises(UsageError, match=r"virtual_workers is 6, .* expected a multiple of 4"):
        VirtualWorkers(6, Four())
    with pytest.raises(UsageError, match="is no variable of the model"):
        step(compiled(Noise()), X, Y, 2)
    engine = StepEngine(OneDevice(), fast=False, sync_batchnorm=False, virtual_workers=2)
    with pytest.raises(UsageError, match="built with synchronized=True"):
        engine.require_virtual(compiled(layers.BatchNormalization(synchronized=True)))

    class Own(keras.Model):
        def train_step(self, data: Any) -> Any:
            return super().train_step(data)

    with pytest.raises(UsageError, match="overrides train_step"):
        engine.require_virtual(Own())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TrainConfig(virtual_workers=0), "virtual_workers is 0; expected at least 1"),
        (
            lambda: TrainConfig(virtual_workers=4, accumulation_steps=2),
            "drop --train.accumulation_steps",
        ),
        (
            lambda: Config(
                train=TrainConfig(virtual_workers=4),
                distribute=DistributeConfig(sync_batchnorm=True),
            ),
            "--distribute.sync_batchnorm false",
        ),
        (
            lambda: Config(
                train=TrainConfig(virtual_workers=4),
                distribute=DistributeConfig(compression="fp16"),
            ),
            "drop --distribute.compression",
        ),
        (lambda: ScriptConfig(virtual_workers=4, batch="per_worker"), "drop --batch"),
    ],
)
def test_settings_that_depend_on_the_workers_are_refused(make, message):
    with pytest.raises(UsageError, match=message):
        make()
