"""The validation loss has the penalties of regularisers, as the training loss has and as Keras'."""

import keras
import numpy as np
import pytest

from distcnn.training.trainer import Trainer
from tests.runs import rows, small_config


def test_the_validation_loss_is_what_keras_evaluates(tmp_path):
    run = tmp_path / "run"
    trainer = Trainer(
        small_config(run, model__factory="tests.tiny:plain", train__eval_batch_size=7)
    )
    summary = trainer.fit()
    assert summary is not None
    validation = trainer.setup.dataset.validation
    assert validation is not None
    images = trainer.setup.evaluation.scaled(validation.gather(np.arange(len(validation)))).numpy()
    model = keras.saving.load_model(run / "model.keras")
    model.compile("sgd", "sparse_categorical_crossentropy")
    expected = model.evaluate(images, validation.labels, verbose=0, return_dict=True)["loss"]
    penalty = float(sum(model.losses))
    assert penalty > 0.01
    assert summary["val_loss"] == pytest.approx(expected, rel=1e-4)
    assert rows(run)[-1]["val_loss"] == summary["val_loss"]
