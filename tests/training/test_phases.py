"""`train.phases`: what is frozen when, with which rate and optimizer, and after which stop."""

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from distcnn.errors import UsageError
from distcnn.training.trainer import Trainer
from tests.runs import interrupted_run, parse, rows, small_config, small_run

PHASES: dict[str, Any] = {
    "model__args": {"norms": 2},
    "train__phases": [
        {"train": "last 2", "epochs": 1, "learning_rate": 0.01},
        {"train": "all", "epochs": 2},
    ],
    "train__epochs": 3,
    "optimizer__warmup_epochs": 0.5,
    "optimizer__schedule": "cosine",
}


class Weights(keras.callbacks.Callback):
    """Keeps the weights at the beginning and after each epoch, and what is trained there."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []
        self.trained: list[int] = []
        self.updates: list[int] = []

    def on_train_begin(self, logs: Any = None) -> None:
        self.seen.append(self.model.get_weights())

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append(self.model.get_weights())
        self.trained.append(len(self.model.trainable_variables))
        self.updates.append(int(self.model.optimizer.iterations))


@pytest.mark.parametrize("fast_path", ["on", "off"])
def test_frozen_layers_do_not_move_and_each_phase_has_its_own_optimizer(fast_path, tmp_path):
    seen = Weights()
    trainer = Trainer(small_config(tmp_path / "run", train__fast_path=fast_path, **PHASES), [seen])
    paths = [weight.path for weight in trainer.model.weights]
    assert trainer.fit() is not None
    moved = [
        [not np.array_equal(a, b) for a, b in zip(before, after, strict=True)]
        for before, after in zip(seen.seen, seen.seen[1:], strict=False)
    ]
    # The convolution and the moving statistics behind it, then the dense layers and theirs.
    assert len(paths) == 2 + 4 + 2 + 4 + 2
    assert moved[0] == [False] * 6 + [True] * 8
    assert moved[1] == moved[2] == [True] * 14
    assert seen.trained == [6, 10, 10]
    assert seen.updates == [7, 7, 14]
    rates = {row["step"]: row["learning_rate"] for row in rows(tmp_path / "run")}
    assert rates[3] == pytest.approx(0.01 * 3 / 3.5, rel=0.2)
    assert 0.0005 < max(rate for step, rate in rates.items() if step > 7) < 0.0011
    assert rates[21] < 1e-4
    saved = keras.saving.load_model(tmp_path / "run" / "model.keras")
    assert len(saved.trainable_variables) == 10


def test_batch_normalisation_may_stay_frozen(tmp_path):
    phases = [{"train": "head", "epochs": 1}, {"epochs": 1, "freeze_batchnorm": True}]
    seen = Weights()
    overrides = {"train__phases": phases, "train__epochs": 2, "model__args": {"norms": 2}}
    assert Trainer(small_config(tmp_path / "run", **overrides), [seen]).fit() is not None
    first, _, last = seen.seen
    same = [np.array_equal(a, b) for a, b in zip(first, last, strict=True)]
    assert same == [False] * 2 + [True] * 4 + [False] * 2 + [True] * 4 + [False] * 2


@pytest.mark.parametrize(
    ("steps", "overrides"),
    [
        ([3], {}),  # in the first phase
        ([7], {"optimizer__ema": 0.9}),  # at the border
        (
            [10, 6],  # in the second one, twice, with early stopping on the epoch of another phase
            {
                "train__accumulation_steps": 2,
                "train__batch_size": 16,
                "train__early_stopping": 5,
                "precision__policy": "mixed_float16",
            },
        ),
    ],
    ids=["first", "border", "second"],
)
def test_a_stop_changes_nothing(steps, overrides, tmp_path):
    whole = small_run(tmp_path / "whole", **PHASES | overrides)
    again = interrupted_run(tmp_path / "again", steps, **PHASES | overrides)
    assert again["weights_sha256"] == whole["weights_sha256"]
    assert [r["step"] for r in rows(tmp_path / "again") if "val_loss" in r] == [7, 14, 21]


def test_the_best_epoch_may_be_of_an_earlier_phase(tmp_path):
    phases = [{"train": "head", "epochs": 1}, {"epochs": 2, "learning_rate": 0.5}]
    sgd = {"optimizer__name": "sgd", "optimizer__lr": 0.001, "optimizer__clip_norm": 1.0}
    stopping = {"train__phases": phases, "train__epochs": 3, "train__early_stopping": 3}
    summary = small_run(tmp_path / "run", **sgd, **stopping)
    assert summary["saved_epoch"] == 1
    first = small_run(tmp_path / "first", train__phases=phases[:1], train__epochs=1, **sgd)
    assert summary["weights_sha256"] == first["weights_sha256"]


def test_wrong_phases_are_usage_errors(tmp_path):
    head = '--train.phases=[{"train": "head", "epochs": 1}]'
    for arguments, message in [
        ([head, "--train.epochs", "25"], r"train.epochs is 25, but .* add up to 1"),
        (['--train.phases=[{"train": "tail", "epochs": 1}]'], r"trains 'tail'; expected head, all"),
        (['--train.phases=[{"epochs": 0}]'], r"has 0 epochs; expected a whole number"),
        (['--train.phases=[{"epoch": 1}]'], r"has the key 'epoch'"),
        (['--train.phases=[{"train": "all"}]'], r"has no epochs in"),
        (['--train.phases=[{"epochs": 1, "learning_rate": "fast"}]'], r"learning_rate 'fast'"),
        ([head, "--optimizer.warmup_epochs", "2"], r"a phase has 1 epochs; lower it"),
        ([head, "--checkpoint.resume", "runs/a"], r"checkpoint.resume runs/a takes weights, opt"),
    ]:
        with pytest.raises(UsageError, match=message):
            parse(*arguments)
    assert parse(head).train.epochs == 1
    assert parse('--train.phases=[{"epochs": 1, "learning_rate": "1e-4"}]').train.phases == [
        {"epochs": 1, "train": "all", "learning_rate": 1e-4, "freeze_batchnorm": False}
    ]
    many = [{"train": "last 9", "epochs": 2}]
    with pytest.raises(UsageError, match="the model has 2 layers with weights; expected at most 2"):
        Trainer(small_config(tmp_path / "run", train__phases=many))
    compiled = {"model__factory": "tests.tiny:compiled", "train__phases": [{"epochs": 2}]}
    with pytest.raises(UsageError, match="a new phase needs a new optimizer"):
        Trainer(small_config(tmp_path / "run", **compiled))
    assert not Path(tmp_path / "run").exists()
