"""`--checkpoint.resume PATH`: the state is the other run's, the rest is the configuration's."""

from pathlib import Path

import pytest

from distcnn.errors import UsageError
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, rows, small_config, small_run


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two epochs of 7 steps, at a rate of 0.001."""
    run = tmp_path_factory.mktemp("from") / "first"
    small_run(run)
    return run


def test_the_configured_rate_is_the_one_that_trains(first, tmp_path):
    run = tmp_path / "run"
    resume = {"train__epochs": 3, "checkpoint__resume": str(first)}
    trainer = Trainer(small_config(run, optimizer__lr=0.02, **resume))
    summary = trainer.fit()
    assert summary is not None
    assert summary["learning_rate"] == 0.02
    assert float(trainer.setup.optimizer.learning_rate) == pytest.approx(0.02)
    assert [row["learning_rate"] for row in rows(run)] == pytest.approx([0.02] * len(rows(run)))
    assert [row["epoch"] for row in rows(run) if "val_loss" in row] == [3]


def test_epochs_are_kept_where_another_batch_gives_them_other_steps(first, tmp_path):
    run = tmp_path / "run"
    resume = {"train__epochs": 3, "checkpoint__resume": str(first)}
    trainer = Trainer(small_config(run, train__batch_size=16, **resume))
    summary = trainer.fit()
    assert summary is not None
    per_epoch = trainer.setup.sampler.steps_per_epoch
    assert per_epoch == 13
    assert (summary["epochs"], summary["steps"]) == (3, 39)
    assert [row["step"] for row in rows(run)][-1] == 39
    assert min(row["step"] for row in rows(run)) > 26
    assert int(trainer.setup.optimizer.iterations) == 39


def test_a_state_from_within_an_epoch_needs_the_same_steps(tmp_path):
    other = tmp_path / "other"
    assert Trainer(small_config(other, train__epochs=3), [SignalAt(9)]).fit() is None
    resume = {"train__epochs": 3, "checkpoint__resume": str(other)}
    with pytest.raises(UsageError, match=r"step 2 of 7 within an epoch, but here .* 13 steps"):
        small_run(tmp_path / "run", train__batch_size=16, **resume)
    whole = small_run(tmp_path / "whole", train__epochs=3)
    assert small_run(tmp_path / "same", **resume)["weights_sha256"] == whole["weights_sha256"]


def test_a_run_with_nothing_left_to_train_is_refused(first, tmp_path):
    with pytest.raises(UsageError, match=r"has trained 2 epochs, and train.epochs is 2, so nothi"):
        small_run(tmp_path / "run", checkpoint__resume=str(first))
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("to_schedule", [True, False])
def test_another_schedule_or_an_average_may_be_chosen(first, to_schedule, tmp_path):
    scheduled = tmp_path / "scheduled"
    schedule = {"optimizer__schedule": "cosine", "train__epochs": 2}
    if to_schedule:
        overrides = {**schedule, "optimizer__ema": 0.9, "checkpoint__resume": str(first)}
    else:
        small_run(scheduled, **schedule)
        overrides = {"checkpoint__resume": str(scheduled)}
    summary = small_run(tmp_path / "run", **{**overrides, "train__epochs": 3})
    assert (summary["epochs"], summary["steps"]) == (3, 21)
