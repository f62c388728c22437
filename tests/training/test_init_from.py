"""`--init_from`: which weights are taken, what is said about it, and what is refused."""

from pathlib import Path

import keras
import numpy as np
import pytest

from distcnn.errors import DistcnnError
from distcnn.models.initial import take_weights
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, small_config, small_run
from tests.tiny import tiny

NORMS = {"model__args": {"norms": 2}}


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("from") / "first"
    small_run(run, train__epochs=1, **NORMS)
    return run


def weights(model: keras.Model) -> list[np.ndarray]:
    values: list[np.ndarray] = model.get_weights()
    return values


def test_a_run_begins_with_the_weights_of_another(first, tmp_path, caplog):
    caplog.set_level("INFO", "distcnn")
    taken = weights(keras.saving.load_model(first / "model.keras"))
    trainer = Trainer(
        small_config(tmp_path / "run", init_from=str(first), optimizer__ema=0.9, **NORMS)
    )
    assert f"{first}: 5 of 5 layers, 8,698 of 8,698 weights" in caplog.text
    for own, other in zip(weights(trainer.model), taken, strict=True):
        np.testing.assert_array_equal(own, other)
    ema = trainer.setup.ema
    assert ema is not None
    np.testing.assert_array_equal(ema.averages[0], taken[0])
    assert trainer.fit() is not None


def test_the_head_is_a_new_one_for_other_classes_and_the_rest_is_taken(tmp_path, caplog):
    caplog.set_level("INFO", "distcnn")
    other = tiny((32, 32, 3), 4, norms=2)  # in one process with other names for the same layers
    other.save(tmp_path / "four.keras")
    config = small_config(tmp_path / "run", init_from=str(tmp_path / "four.keras"), **NORMS)
    model = Trainer(config).model
    assert "4 of 5 layers" in caplog.text
    assert "has the shape (16, 10), there (16, 4))" in caplog.text
    for own, there in zip(weights(model)[:-2], weights(other)[:-2], strict=True):
        np.testing.assert_array_equal(own, there)
    assert not any(head.any() for head in weights(model)[-2:])  # all classes are alike at first


def test_a_run_goes_on_without_the_file_it_began_with(tmp_path):
    tiny((32, 32, 3), 10).save(tmp_path / "ten.keras")
    overrides = {"init_from": str(tmp_path / "ten.keras")}
    whole = small_run(tmp_path / "whole", **overrides)
    config = small_config(tmp_path / "run", **overrides)
    assert Trainer(config, [SignalAt(9)]).fit() is None
    (tmp_path / "ten.keras").unlink()
    summary = Trainer(config).fit()
    assert summary is not None
    assert summary["weights_sha256"] == whole["weights_sha256"]


def test_what_cannot_be_taken_is_named_in_one_line(first, tmp_path):
    damaged = tmp_path / "damaged.keras"
    damaged.write_bytes(b"PK no model")
    for path, message in [
        (tmp_path / "missing", "missing does not exist; expected a run directory or a model.keras"),
        (tmp_path, "holds no model.keras; expected a finished run"),
        (damaged, "is not a model that Keras can load"),
    ]:
        with pytest.raises(DistcnnError, match=f"^init_from: .*{message}"):
            Trainer(small_config(tmp_path / "run", init_from=str(path)))
    plain = {"model__factory": "tests.tiny:plain", "init_from": str(first)}
    with pytest.raises(DistcnnError, match="which has another architecture: 1 of 2 layers fit"):
        Trainer(small_config(tmp_path / "run", **plain))
    assert not (tmp_path / "run").exists()


def test_pixels_of_another_range_are_warned_of(first, tmp_path, caplog):
    overrides = {"init_from": str(first), "data__pixels": "signed", **NORMS}
    Trainer(small_config(tmp_path / "run", **overrides))
    assert "were trained on pixels of the range unit, but this run has signed" in caplog.text


def test_weights_of_one_shape_are_told_apart_by_name(tmp_path):
    def model(**norm: bool) -> keras.Model:
        inputs = keras.Input((4,))
        x = keras.layers.BatchNormalization(**norm)(keras.layers.Dense(4)(inputs))
        return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Dense(4)(x)))

    model(scale=False).save(tmp_path / "centred.keras")
    scaled = model(center=False)
    taken = take_weights(scaled, tmp_path / "centred.keras")
    assert "(has gamma, there beta)" in taken.description
    np.testing.assert_array_equal(scaled.layers[2].gamma, np.ones(4))
