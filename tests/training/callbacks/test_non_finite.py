"""A loss that is not finite stops the run."""

import numpy as np
import pytest

from distcnn.errors import DistcnnError
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, rows, small_config, small_run


@pytest.mark.parametrize(("at", "kept"), [(3, []), (10, ["step-00000007"])])
def test_a_loss_that_is_no_number_stops_and_names_the_step(tmp_path, at, kept):
    run = tmp_path / "run"
    overrides = {
        "model__factory": "tests.tiny:exploding",
        "model__args": {"at": at},
        "logging__every_steps": 2,
        "train__epochs": 3,
    }
    with pytest.raises(DistcnnError, match=f"the loss of step {at} is not finite"):
        small_run(run, **overrides)
    assert [p.stem for p in run.glob("checkpoints/step-*.npz")] == kept
    assert all(np.isfinite(row["loss"]) for row in rows(run))
    assert not (run / "summary.json").exists()


def test_a_signal_does_not_save_a_loss_that_is_no_number(tmp_path):
    overrides = {"model__factory": "tests.tiny:exploding", "model__args": {"at": 2}}
    config = small_config(tmp_path / "run", logging__every_steps=100, **overrides)
    with pytest.raises(DistcnnError, match="the loss of step 2 is not finite"):
        Trainer(config, [SignalAt(3)]).fit()
    assert not (tmp_path / "run" / "checkpoints").exists()
