"""Data and models of a user's own, for `--data.factory tests.scripting.own:NAME`."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

EXAMPLES = {"train": slice(0, 75), "validation": slice(75, 92), "test": slice(92, 101)}


def two_outputs() -> dict[str, Any]:
    """Arrays with two inputs, two targets and sample weights."""
    random = np.random.default_rng(3)
    inputs = {name: random.normal(size=(101, 4)).astype(np.float32) for name in ("a", "b")}
    total = inputs["a"].sum(1, keepdims=True) - inputs["b"][:, :1]
    targets = {"value": total, "kind": (total > 0).astype(np.float32)}
    weights = {name: random.uniform(0.5, 1.5, 101).astype(np.float32) for name in targets}

    def part(of: slice) -> tuple[dict[str, Any], ...]:
        return tuple({k: v[of] for k, v in each.items()} for each in (inputs, targets, weights))

    return {name: part(of) for name, of in EXAMPLES.items()}


def stream() -> dict[str, Any]:
    """A shuffled pipeline that does not end, and one to validate on that does."""
    inputs, targets, _ = two_outputs()["train"]
    data = tf.data.Dataset.from_tensor_slices((inputs, targets))
    return {"train": data.shuffle(75, seed=4).repeat().batch(16), "validation": data.batch(20)}


class Batches(keras.utils.PyDataset):
    """A sequence of batches."""

    def __len__(self) -> int:
        return 5

    def __getitem__(self, index: int) -> Any:
        inputs, targets, _ = two_outputs()["train"]
        rows = slice(15 * index, 15 * index + 15)
        return tuple({k: v[rows] for k, v in each.items()} for each in (inputs, targets))


def sequence() -> dict[str, Any]:
    """Batches by index."""
    return {"train": Batches(workers=1)}


def not_a_dictionary() -> Any:
    """What a user may return at first."""
    return two_outputs()["train"]


def misspelt() -> dict[str, Any]:
    """A dictionary with a name that means nothing."""
    return {"train": two_outputs()["train"], "val": None}


def of_different_lengths() -> dict[str, Any]:
    """Arrays that do not belong together."""
    return {"train": (np.zeros((5, 4)), np.zeros(6))}


def model(width: int = 8) -> keras.Model:
    """A compiled model with two inputs and two outputs."""
    first, second = keras.Input((4,), name="a"), keras.Input((4,), name="b")
    hidden = layers.Dense(width, activation="tanh")(layers.Concatenate()([first, second]))
    outputs = {
        "value": layers.Dense(1, name="value", dtype="float32")(hidden),
        "kind": layers.Dense(1, "sigmoid", name="kind", dtype="float32")(hidden),
    }
    both = keras.Model({"a": first, "b": second}, outputs)
    both.compile(
        keras.optimizers.Adam(0.01),
        {"value": "mse", "kind": "binary_crossentropy"},
        loss_weights={"value": 1.0, "kind": 0.3},
        metrics={"value": ["mae"]},
        weighted_metrics={"kind": [keras.metrics.AUC(name="auc")]},
    )
    return both


def exploding() -> keras.Model:
    """A model whose loss is soon no number."""
    both = model()
    both.compile(keras.optimizers.SGD(1e20), {"value": "mse", "kind": "binary_crossentropy"})
    return both


def uncompiled() -> keras.Model:
    """A model whose loss nobody knows."""
    return keras.Sequential([keras.Input((4,)), layers.Dense(1)])
