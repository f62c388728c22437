"""Everything that is chosen by name can be extended from outside, by one line in a dict."""

import json

import numpy as np
import pytest

from distcnn.cli.parser import parse_config
from distcnn.config import DataConfig, DistributeConfig
from distcnn.config.lookup import look_up
from distcnn.data.augment import AUGMENTATIONS
from distcnn.data.dataset import default_image_shape
from distcnn.data.sources import SOURCES, DataSet, data_set_of, open_source
from distcnn.distribute.strategies import STRATEGIES, Strategy, choose_strategy
from distcnn.errors import UsageError
from distcnn.models.catalog import MODELS
from distcnn.optim.catalog import OPTIMIZERS, SCHEDULES
from distcnn.runtime.cluster import Cluster
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


OPENERS = {name: data_set_of(name).open for name in SOURCES}


@pytest.mark.parametrize("table", [OPENERS, MODELS, OPTIMIZERS, SCHEDULES, AUGMENTATIONS])
def test_every_entry_of_a_table_can_be_imported(table):
    for name in table:
        assert callable(look_up("key", name, table)), name


@pytest.mark.parametrize(
    ("entry", "folder", "message"),
    [
        (extension.open_stripes, None, ""),
        ("tests.extension:open_stripes", "images", ""),
        (DataSet(open=extension.open_stripes, reads_dir="required"), "images", ""),
        (DataSet(open=extension.open_stripes, reads_dir="required"), None, "needs --data.dir DIR"),
        (DataSet(open="unused:open", reads_dir="never"), "images", "reads no folder"),
    ],
)
def test_a_data_set_says_whether_it_reads_a_folder(entry, folder, message, monkeypatch):
    monkeypatch.setitem(SOURCES, "stripes", entry)
    flags = ["--data.name=stripes", *([f"--data.dir={folder}"] if folder else [])]
    config = DataConfig(name="stripes", dir=folder)
    if not message:
        assert parse_config("distcnn.train", "", flags) is not None
        assert default_image_shape(config, open_source(config)) == (8, 8, 1)
        return
    with pytest.raises(UsageError, match=message):
        parse_config("distcnn.train", "", flags)
    with pytest.raises(UsageError, match=message):
        open_source(config)


def test_a_data_set_may_be_enlarged_by_default(monkeypatch):
    entry = DataSet(open=extension.open_stripes, default_shape=(16, 16, 3))
    monkeypatch.setitem(SOURCES, "stripes", entry)
    config = DataConfig(name="stripes")
    source = open_source(config)
    assert default_image_shape(config, source) == (16, 16, 3)
    assert default_image_shape(DataConfig(name="stripes", image_size=4), source) == (4, 4, 1)


def test_auto_chooses_an_added_strategy_before_the_built_in_ones(monkeypatch):
    def add(name: str, reason: str | None) -> None:
        strategy = Strategy(
            build=extension.build_renamed,
            devices_per_process="one",
            joins_processes=False,
            auto_reason=lambda _: reason,
        )
        monkeypatch.setitem(STRATEGIES, name, strategy)

    add("unsuitable", None)
    add("renamed", "it fits")
    chosen = choose_strategy(DistributeConfig(), Cluster(), gpus=0, has_horovod=False)
    assert chosen == ("renamed", "it fits")
    monkeypatch.delitem(STRATEGIES, "renamed")
    chosen = choose_strategy(DistributeConfig(), Cluster(), gpus=0, has_horovod=False)
    assert chosen[0] == "one_device"


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
