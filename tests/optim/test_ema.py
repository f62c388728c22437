"""The moving average of the weights."""

import pytest

from tests.runs import small_run


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path):
    overrides = {"data__validation": "test", "optimizer__ema": 0.9, "optimizer__lr": 0.01}
    averaged = small_run(tmp_path / "averaged", **overrides)
    plain = small_run(tmp_path / "plain", **overrides | {"optimizer__ema": 0.0})
    assert averaged["weights_sha256"] != plain["weights_sha256"]
    assert averaged["loss"] == plain["loss"]  # training itself is the same
    assert averaged["val_loss"] == pytest.approx(averaged["test_loss"], rel=1e-6)
