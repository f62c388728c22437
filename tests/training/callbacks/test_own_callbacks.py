"""Keras callbacks of a user's own, and those of Keras."""

from typing import Any

import keras
import pytest

from distcnn.storage.summary import hash_weights
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, rows, small_config, small_run
from tests.tiny import Seen


def test_user_callbacks_see_the_classifier(tmp_path):
    Seen.log.clear()
    small_run(tmp_path / "run", train__callbacks=["tests.tiny:Seen"])
    names = ["accuracy", "loss"]
    assert Seen.log[0] == ("begin", "tiny", 2, 7)
    assert [entry for entry in Seen.log if entry[0] == "batch"] == [
        ("batch", batch, names) for batch in (*range(7), *range(7))
    ]
    every = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert [entry for entry in Seen.log if entry[0] == "epoch"] == [
        ("epoch", 0, every),
        ("epoch", 1, every),
    ]
    assert Seen.log[-1] == ("end",)


def test_keras_callbacks_work_unchanged(tmp_path):
    saved = tmp_path / "saved.keras"
    losses: list[float] = []
    callbacks = [
        keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
        ),
        keras.callbacks.ModelCheckpoint(saved),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate),
        keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=1e9, patience=1),
    ]
    trainer = Trainer(small_config(tmp_path / "run", train__epochs=5), callbacks)
    summary = trainer.fit()
    assert summary is not None
    assert summary["epochs"] == 2
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(2.5e-4)
    assert len(losses) == 14
    model = keras.saving.load_model(saved)
    assert model.name == "tiny"
    assert hash_weights(model.weights) == summary["weights_sha256"]


def test_schedules_are_saved_with_models(tmp_path):
    saved = tmp_path / "saved.keras"
    trainer = Trainer(
        small_config(tmp_path / "run", optimizer__schedule="cosine"),
        [keras.callbacks.ModelCheckpoint(saved)],
    )
    trainer.fit()
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(0, abs=1e-8)
    rate = float(keras.saving.load_model(saved).optimizer.learning_rate)
    assert rate == pytest.approx(0, abs=1e-8)


def test_user_callbacks_see_each_batch_once(tmp_path):
    seen: list[tuple[int, int]] = []

    class Watch(keras.callbacks.Callback):
        epoch = -1

        def on_epoch_begin(self, epoch: int, logs: Any = None) -> None:
            self.epoch = epoch

        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            seen.append((self.epoch, batch))

    config = small_config(tmp_path / "run")
    assert Trainer(config, [Watch(), SignalAt(4)]).fit() is None
    assert Trainer(config, [Watch()]).fit() is not None
    assert seen == [(epoch, batch) for epoch in range(2) for batch in range(7)]
