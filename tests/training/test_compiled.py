"""A model that its owner has compiled trains as it is compiled."""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.errors import UsageError
from distcnn.training.trainer import Trainer
from tests import tiny
from tests.runs import interrupted_run, rows, small_config, small_run

SHAPE = (32, 32, 3)


def trained_by_keras(model: keras.Model, trainer: Trainer, *, index: bool) -> dict[str, Any]:
    """Trains a model on the batches of a run by plain Keras; returns those of the last epoch."""
    model.set_weights(trainer.model.get_weights())

    def batches() -> Iterator[Any]:
        for images, labels, _ in trainer.setup.training_batches(0):
            x, y = np.asarray(images, np.float32) / 255, np.asarray(labels)
            yield x, y.argmax(1) if index else y

    steps, epochs = trainer.setup.sampler.steps_per_epoch, trainer.config.train.epochs
    history = model.fit(
        batches(), steps_per_epoch=steps, epochs=epochs, shuffle=False, verbose=0
    ).history
    return {name: values[-1] for name, values in history.items()}


def evaluated_by_keras(model: keras.Model, trainer: Trainer, *, index: bool) -> dict[str, Any]:
    """Evaluates a model on the validation images by plain Keras."""
    split = trainer.setup.dataset.validation
    assert split is not None
    images = split.gather(tf.range(len(split), dtype=tf.int64)).numpy()
    labels = split.labels if index else np.eye(10, dtype=np.float32)[split.labels]
    x = images.astype(np.float32) / 255
    found: dict[str, Any] = model.evaluate(x, labels, batch_size=512, verbose=0, return_dict=True)
    return found


@pytest.mark.parametrize(("name", "index"), [("compiled", True), ("own_step", False)])
def test_loss_metrics_optimizer_and_steps_are_those_of_the_owner(name, index, tmp_path, caplog):
    trainer = Trainer(
        small_config(tmp_path / "run", model__factory=f"tests.tiny:{name}", train__fast_path="off")
    )
    plain = getattr(tiny, name)(SHAPE, 10)
    trained = trained_by_keras(plain, trainer, index=index)
    summary = trainer.fit()
    assert summary is not None
    for ours, theirs in zip(trainer.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    last = rows(tmp_path / "run")[-1]
    validated = evaluated_by_keras(plain, trainer, index=index)
    expected = trained | {f"val_{key}": value for key, value in validated.items()}
    assert expected.keys() <= last.keys() & summary.keys()
    for key, value in expected.items():
        if key == "val_loss" and name == "own_step":
            continue  # each of its batches counts the same, and Keras has a single one
        assert last[key] == pytest.approx(value, rel=1e-4), key
        assert summary[key] == last[key]
    assert {"test_loss", *(f"test_{key}" for key in trained)} <= summary.keys()
    assert "and of the section optimizer only ema" in caplog.text


def test_what_the_steps_of_a_model_cannot_do_is_refused(tmp_path):
    with pytest.raises(UsageError, match="train_step, which computes a whole batch"):
        Trainer(
            small_config(
                tmp_path / "run",
                model__factory="tests.tiny:own_step",
                train__accumulation_steps=2,
            )
        )


def test_a_model_that_minimises_nothing_is_refused(tmp_path):
    with pytest.raises(UsageError, match="compiled without a loss; pass one to compile"):
        Trainer(small_config(tmp_path / "run", model__factory="tests.tiny:without_loss"))
    assert not (tmp_path / "run").exists()


def test_an_interrupted_run_goes_on_with_the_metrics_of_the_epoch(tmp_path):
    own = {"model__factory": "tests.tiny:own_step"}
    whole = small_run(tmp_path / "whole", **own)
    interrupted = interrupted_run(tmp_path / "stopped", [4, 6], **own)
    assert interrupted["weights_sha256"] == whole["weights_sha256"]
    for key in ("loss", "auc", "f1", "val_auc"):
        assert interrupted[key] == pytest.approx(whole[key], rel=1e-6)
