import keras
import numpy as np
import pytest

from distcnn.training.trainer import Trainer
from tests.runs import rows, small_config, small_run
from tests.tiny import tiny


def test_fit_is_plain_keras_on_the_same_batches(tmp_path):
    trainer = Trainer(
        small_config(
            tmp_path / "run",
            model__args={"dropout": 0.0},
            optimizer__name="sgd",
            optimizer__lr=0.05,
        )
    )
    start = trainer.model.get_weights()
    batches = [(np.array(x), np.array(y)) for x, y, _ in trainer.setup.training_batches(0)]
    summary = trainer.fit()
    assert summary is not None

    plain = tiny((32, 32, 3), 10, dropout=0.0)
    plain.set_weights(start)
    plain.compile(keras.optimizers.SGD(0.05, 0.9, nesterov=True), "categorical_crossentropy")
    for images, labels in batches:
        plain.train_on_batch(images.astype(np.float32) / 255, labels)
    assert len(batches) == summary["steps"] == 14
    for ours, theirs in zip(trainer.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_evaluation_counts_every_image_once(tmp_path):
    one = small_run(tmp_path / "one", train__eval_batch_size=7)
    all_at_once = small_run(tmp_path / "all", train__eval_batch_size=512)
    for key in ("val_accuracy", "test_accuracy", "val_loss", "test_loss"):
        assert one[key] == pytest.approx(all_at_once[key], rel=1e-5)


@pytest.mark.parametrize("steps", [2, 5, 100])
def test_steps_per_execution_changes_no_weight(tmp_path, steps):
    plain = small_run(tmp_path / "plain")
    grouped = small_run(tmp_path / "grouped", train__steps_per_execution=steps)
    assert grouped["weights_sha256"] == plain["weights_sha256"]
    assert grouped["steps"] == plain["steps"]
    assert rows(tmp_path / "grouped")[-1]["loss"] == rows(tmp_path / "plain")[-1]["loss"]


def test_the_seed_decides(tmp_path):
    first = small_run(tmp_path / "first")
    again = small_run(tmp_path / "again")
    other = small_run(tmp_path / "other", train__seed=22)
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    summary = small_run(
        tmp_path / "run",
        train__epochs=30,
        train__early_stopping=2,
        optimizer__name="sgd",
        optimizer__lr=1.5,
        model__args={"dropout": 0.9},
    )
    losses = [row["val_loss"] for row in rows(tmp_path / "run") if "val_loss" in row]
    best = int(np.argmin(losses))
    assert summary["epochs"] == len(losses) == best + 3 < 30
    assert summary["saved_epoch"] == best + 1
    assert summary["val_loss"] == losses[best]
