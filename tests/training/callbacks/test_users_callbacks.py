"""Users' callbacks see the weights that are saved, and continue where they were interrupted."""

import logging
from typing import Any

import keras
import numpy as np
import pytest

from distcnn.errors import UsageError
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, rows, small_config

WORSENING: dict[str, Any] = {
    "train__epochs": 8,
    "optimizer__name": "sgd",
    "optimizer__lr": 1.5,
    "model__args": {"dropout": 0.9},
}
"""A run whose validation loss is not the lowest at its end."""


class Weights(keras.callbacks.Callback):
    """Keeps the weights of every epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.epochs: list[list[np.ndarray]] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.epochs.append(self.model.get_weights())


def equal(first: list[np.ndarray], second: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_callbacks_see_the_averaged_weights_that_are_validated_and_saved(tmp_path):
    seen = Weights()
    trainer = Trainer(small_config(tmp_path / "run", optimizer__ema=0.9), [seen])
    trainer.fit()
    assert equal(seen.epochs[-1], trainer.model.get_weights())
    assert not equal(seen.epochs[0], seen.epochs[1])
    plain = Trainer(small_config(tmp_path / "plain"))
    plain.fit()
    assert not equal(plain.model.get_weights(), trainer.model.get_weights())


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_weights_that_a_callback_restores_are_saved_and_evaluated(ema, tmp_path):
    seen = Weights()
    stopping = keras.callbacks.EarlyStopping("val_loss", patience=2, restore_best_weights=True)
    run = tmp_path / "run"
    trainer = Trainer(small_config(run, optimizer__ema=ema, **WORSENING), [seen, stopping])
    summary = trainer.fit()
    assert summary is not None
    losses = [row["val_loss"] for row in rows(run) if "val_loss" in row]
    best = int(np.argmin(losses))
    assert best < len(losses) - 1
    saved = keras.saving.load_model(run / "model.keras")
    assert equal(saved.get_weights(), seen.epochs[best])
    assert summary["val_loss"] == pytest.approx(losses[best], rel=1e-5)


def test_what_a_callback_sets_during_an_epoch_is_where_the_average_goes_on(tmp_path):
    class Zero(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            self.model.set_weights([0 * weight for weight in self.model.get_weights()])

    trainer = Trainer(small_config(tmp_path / "run", optimizer__ema=0.9), [Zero()])
    trainer.fit()
    assert all((weight == 0).all() for weight in trainer.model.get_weights())


class Counting(keras.callbacks.Callback):
    """A callback with a state of its own, which changes the training."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0
        self.trace = np.zeros(0, np.float32)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.count += 1
        self.trace = np.append(self.trace, np.float32(logs["val_loss"]))
        if self.count == 4:
            self.model.stop_training = True

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count, "trace": self.trace}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count, self.trace = state["count"], state["trace"]


def user_callbacks() -> list[keras.callbacks.Callback]:
    return [
        keras.callbacks.ReduceLROnPlateau("val_loss", factor=0.5, patience=1, min_delta=1e9),
        keras.callbacks.EarlyStopping("val_loss", patience=6, restore_best_weights=True),
        Counting(),
    ]


def test_the_state_of_callbacks_survives_an_interruption(tmp_path, caplog):
    whole_callbacks, parts_callbacks = user_callbacks(), user_callbacks()
    whole = Trainer(small_config(tmp_path / "whole", **WORSENING), whole_callbacks).fit()
    config = small_config(tmp_path / "parts", **WORSENING)
    assert Trainer(config, [*user_callbacks(), SignalAt(16)]).fit() is None
    with caplog.at_level(logging.WARNING, "distcnn"):
        parts = Trainer(config, parts_callbacks).fit()
    assert whole is not None
    assert parts is not None
    assert "starts anew" not in caplog.text
    for key in ("epochs", "steps", "weights_sha256", "val_loss"):
        assert parts[key] == whole[key], key
    assert parts["epochs"] == 4
    counting, same = whole_callbacks[-1], parts_callbacks[-1]
    assert isinstance(counting, Counting)
    assert isinstance(same, Counting)
    np.testing.assert_array_equal(same.trace, counting.trace)
    rates = [row["learning_rate"] for row in rows(tmp_path / "whole") if "val_loss" in row]
    assert rates[-1] < rates[0]
    assert rates == [r["learning_rate"] for r in rows(tmp_path / "parts") if "val_loss" in r]


def test_a_callback_without_a_state_is_named(tmp_path, caplog):
    config = small_config(tmp_path / "run")
    assert Trainer(config, [Weights(), SignalAt(9)]).fit() is None
    with caplog.at_level(logging.WARNING, "distcnn"):
        Trainer(config, [Weights()]).fit()
    assert "Weights starts anew after the interruption, as it has no state_dict()" in caplog.text


@pytest.mark.parametrize(
    "callback",
    [
        lambda: keras.callbacks.ReduceLROnPlateau(),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch, rate: rate),
    ],
)
@pytest.mark.parametrize(
    "keys", [{"optimizer__schedule": "cosine"}, {"optimizer__warmup_epochs": 1.0}]
)
def test_a_callback_that_sets_a_scheduled_rate_is_refused_at_the_start(callback, keys, tmp_path):
    with pytest.raises(UsageError, match=r"sets the learning rate, but .* already does"):
        Trainer(small_config(tmp_path / "run", **keys), [callback()])


def test_keras_own_progress_bar_is_no_error(tmp_path):
    callbacks = [keras.callbacks.ProgbarLogger()]
    assert Trainer(small_config(tmp_path / "run", train__epochs=1), callbacks).fit() is not None
