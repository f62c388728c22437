"""Everything that is chosen by name can be extended from outside, by one line in a dict."""

import json

import numpy as np
import pytest

from distcnn.cli.parser import parse_config
from distcnn.config.lookup import look_up
from distcnn.data.augment import AUGMENTATIONS
from distcnn.data.sources import SOURCES
from distcnn.distribute.strategies import STRATEGIES, Strategy
from distcnn.errors import UsageError
from distcnn.models.catalog import MODELS
from distcnn.optim.catalog import OPTIMIZERS, SCHEDULES
from distcnn.training.trainer import Trainer
from tests import extension


@pytest.fixture
def _extended(monkeypatch: pytest.MonkeyPatch) -> None:
    for table, name, entry in (
        (SOURCES, "stripes", "tests.extension:open_stripes"),
        (MODELS, "linear", extension.linear),
        (OPTIMIZERS, "nadam", "tests.extension:nadam"),
        (SCHEDULES, "halving", extension.halving),
        (AUGMENTATIONS, "invert", extension.invert),
        (
            STRATEGIES,
            "renamed",
            Strategy(
                build=extension.build_renamed, devices_per_process="one", joins_processes=False
            ),
        ),
    ):
        monkeypatch.setitem(table, name, entry)


FLAGS = (
    *("--data.name", "stripes", "--data.augment.extra", json.dumps({"invert": 0.25})),
    *("--model.name", "linear", "--optimizer.name", "nadam", "--optimizer.schedule", "halving"),
    *("--optimizer.lr", "0.1", "--distribute.strategy", "renamed", "--precision.policy", "float32"),
    *("--train.epochs", "2", "--train.batch_size", "8", "--logging.tensorboard", "false"),
)


@pytest.mark.usefixtures("_extended")
def test_a_run_of_nothing_but_additions():
    config = parse_config("distcnn.train", "", FLAGS)
    assert config is not None
    trainer = Trainer(config)
    summary = trainer.fit()
    assert summary is not None
    assert summary["strategy"] == "renamed"
    assert summary["parameters"] == 64 * 2 + 2
    assert type(trainer.setup.optimizer).__name__ == "Nadam"
    rates = [
        json.loads(line)["learning_rate"]
        for line in (trainer.directory.path / "metrics.jsonl").read_text().splitlines()
    ]
    np.testing.assert_allclose(rates, [0.1 * 0.5, 0.1 * 0.25])  # after an epoch and after two


@pytest.mark.parametrize("table", [SOURCES, MODELS, OPTIMIZERS, SCHEDULES, AUGMENTATIONS])
def test_every_entry_of_a_table_can_be_imported(table):
    for name in table:
        assert callable(look_up("key", name, table)), name


def test_without_the_lines_the_names_are_unknown():
    for key, name in (
        ("data.name", "stripes"),
        ("model.name", "linear"),
        ("optimizer.name", "nadam"),
        ("optimizer.schedule", "halving"),
        ("distribute.strategy", "renamed"),
    ):
        with pytest.raises(UsageError, match=rf"{key} is '{name}'; expected one of"):
            parse_config("distcnn.train", "", [f"--{key}={name}"])
