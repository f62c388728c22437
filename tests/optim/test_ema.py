"""The moving average of the weights."""

import keras
import numpy as np
import pytest

from distcnn.optim.ema import WeightEMA
from tests.runs import small_run


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path, caplog):
    caplog.set_level("INFO", "distcnn")
    overrides = {"data__validation": "test", "optimizer__ema": 0.9, "optimizer__lr": 0.01}
    averaged = small_run(tmp_path / "averaged", **overrides)
    plain = small_run(tmp_path / "plain", **overrides | {"optimizer__ema": 0.0})
    assert averaged["weights_sha256"] != plain["weights_sha256"]
    assert averaged["loss"] == plain["loss"]  # training itself is the same
    assert averaged["val_loss"] == pytest.approx(averaged["test_loss"], rel=1e-6)
    assert "23 test, which serve as validation images too" in caplog.text


@pytest.mark.parametrize("float_type", ["float32", "float64"])
def test_weights_of_either_precision_are_averaged(float_type):
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, dtype=float_type)])
    ema = WeightEMA(model, 0.9)
    for weight in model.weights:
        weight.assign(np.ones(weight.shape))
    ema.restart()
    for weight in model.weights:
        weight.assign(np.full(weight.shape, 2.0))
    ema.update()  # with a decay of 1 / 10 at first
    assert [mean.dtype for mean in ema.averages] == [float_type] * 2
    assert all(mean.numpy() == pytest.approx(1.9) for mean in ema.averages)
