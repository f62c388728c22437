"""Chains of layers: their length, and dropout inside them."""

import contextlib
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from distcnn.distribute.base import Backend
from distcnn.engine.randomness import different_on_each_replica
from distcnn.engine.shard import Shard, computing
from distcnn.fast import chain as chain_module
from distcnn.fast import fast_model
from distcnn.fast.chain import Chain
from distcnn.models.article import article
from distcnn.runtime.keras_hooks import NEXT_SEED, Hooks
from tests.fast.samples import Outcome, smooth


def test_chains_are_as_long_as_they_can_be() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    fast = fast_model(article((32, 32, 3), 10))
    chains = [part for part in fast.parts if isinstance(part, Chain)]
    assert [len(part.chained) for part in chains] == [18, 9, 2]  # Flatten and the float32 head
    kinds = [stage.kind.name for stage in chains[0]._stages[:10]]
    assert kinds[5:9] == ["LINEAR", "MAX_POOL", "BIAS", "RELU"]


class _FixedMask:
    """Replaces the random mask, and records the masks it returned."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(0)
        self.masks: list[np.ndarray] = []

    def __call__(self, _seed: Any, rate: float, like: tf.Tensor) -> tf.Tensor:
        mask = (self.random.random(like.shape) >= rate).astype(np.float32)
        self.masks.append(mask)
        return tf.constant(mask)


class _Masked(layers.Layer):
    """Dropout by its definition, with given masks."""

    def __init__(self, rate: float, masks: Iterator[Any]) -> None:
        super().__init__()
        self.rate, self.masks = rate, masks

    def call(self, inputs: Any, training: bool = False) -> Any:
        return inputs * next(self.masks) / (1 - self.rate) if training else inputs


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_dropout_equals_its_definition(activation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the following normalisation absorbs its scale."""
    fixed = _FixedMask()
    monkeypatch.setattr(chain_module, "keep_mask", fixed)
    model = smooth(activation, dropout=0.4)
    fast = Outcome(model, fast_model(model))
    masks = iter(fixed.masks)

    def plain(layer: keras.layers.Layer) -> keras.layers.Layer:
        dropout = isinstance(layer, layers.Dropout)
        return _Masked(layer.rate, masks) if dropout else layer.from_config(layer.get_config())

    image = keras.Input((12, 12, 3))
    x = image
    for layer in model.layers:
        x = plain(layer)(x)
    by_definition = keras.Model(image, x)
    by_definition.set_weights([w for w in model.get_weights() if w.dtype == np.float32])
    expected = Outcome(by_definition, by_definition)
    fast.statistics = [s for s in fast.statistics if s.dtype == np.float32]
    found = fast.distance(expected)
    assert max(found.values()) < 2e-5, found


def test_dropout_preserves_the_mean_and_scales_the_variance() -> None:
    model = keras.Sequential([keras.Input((12, 12, 3)), layers.Dropout(0.25)])
    fast = fast_model(model)
    images = tf.ones((2000, 12, 12, 3))
    outputs = fast(images, training=True).numpy()
    assert outputs.mean() == pytest.approx(1, abs=5e-3)
    assert outputs.var() == pytest.approx(0.25 / 0.75, rel=0.02)
    assert np.array_equal(fast(images, training=False), images)


def test_dropout_is_seeded_and_differs_by_draw_and_by_replica() -> None:
    class Second(Backend):
        rank, size = 1, 2

        def sum(self, values: np.ndarray) -> np.ndarray:
            return values

    def drawn(*, second: bool = False) -> list[np.ndarray]:
        keras.utils.set_random_seed(9)
        model = keras.Sequential([keras.Input((8, 8, 4)), layers.Dropout(0.5)])
        fast, hooks, shard = fast_model(model), Hooks(), Shard(4, 8, may_be_empty=False)
        with contextlib.ExitStack() as stack, computing(shard):
            stack.callback(hooks.restore)
            if second:
                hooks.replace(NEXT_SEED, different_on_each_replica(Second()))
            return [fast(tf.ones((4, 8, 8, 4)), training=True).numpy() for _ in range(2)]

    first, again = drawn()
    assert np.array_equal(first, drawn()[0])
    assert (first != again).mean() == pytest.approx(0.5, abs=0.1)
    assert (first != drawn(second=True)[0]).mean() == pytest.approx(0.5, abs=0.1)
