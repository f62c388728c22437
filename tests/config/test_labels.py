"""The label of a run: the recipe that its values were loaded from, or a custom label."""

import dataclasses

import pytest
import yaml

from distcnn.cli.parser import load_config, parse_config
from distcnn.config import Config, DataConfig, TrainConfig
from distcnn.errors import UsageError


@pytest.mark.parametrize("name", ["fast", "article"])
def test_a_label_that_is_not_true_is_refused(name):
    with pytest.raises(UsageError, match=r"Config\(...\) does not load a recipe; use distcnn"):
        Config(recipe=name)
    with pytest.raises(UsageError, match="does not load a recipe"):
        dataclasses.replace(Config(), recipe=name)


def test_custom_labels_and_those_of_loaded_recipes_are_kept():
    assert Config().recipe == "custom"
    assert Config(recipe="mine").recipe == "mine"
    loaded = load_config("fast")
    changed = dataclasses.replace(loaded, train=TrainConfig(epochs=1))
    assert changed.recipe == "fast"
    assert yaml.safe_load(changed.to_yaml())["recipe"] == "fast"


def test_a_recipe_with_overrides_equals_the_same_command_line(tmp_path):
    from_flags = parse_config(
        "distcnn.train",
        "",
        [
            *("--recipe", "fast", "--train.epochs", "3", "--data.augment", "flip,crop"),
            *("--model.args", '{"widths": [8, 16]}', "--out", "runs/mine"),
        ],
    )
    assert from_flags == load_config(
        "fast",
        train={"epochs": 3},
        data={"augment": "flip,crop"},
        model={"args": {"widths": [8, 16]}},
        out="runs/mine",
    )
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: quickstart\ntrain: {epochs: 2}\n")
    mine = load_config(str(file), optimizer={"clip_norm": 1.0})
    assert (mine.recipe, mine.data.name) == ("mine", "digits")
    assert (mine.train.epochs, mine.optimizer.clip_norm) == (2, 1.0)


def test_a_whole_section_may_be_given():
    config = load_config("quickstart", data=DataConfig(name="digits", validation="test"))
    assert config.data == DataConfig(name="digits", validation="test")
    assert config.recipe == "quickstart"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train": {"epoch": 3}}, r"unknown key train\.epoch; did you mean train\.epochs\?"),
        ({"epochs": 3}, r"unknown key epochs; did you mean train\.epochs\?"),
        ({"recipe": "fast"}, "unknown key recipe"),
        ({"train": {"epochs": "many"}}, r"train\.epochs is 'many'; expected int"),
        ({"train": {"epochs": 0}}, r"train\.epochs is 0; expected at least 1"),
        ({"data": {"name": "cifr10"}}, "did you mean cifar10"),
    ],
)
def test_wrong_overrides_are_named(overrides, message):
    with pytest.raises(UsageError, match=message):
        load_config("quickstart", **overrides)
    with pytest.raises(UsageError, match="there is no recipe 'quikstart'"):
        load_config("quikstart")


def test_a_recipes_model_arguments_do_not_follow_another_model(tmp_path):
    assert load_config("quickstart").model.args
    other = load_config("quickstart", model={"factory": "mine:net"})
    assert other.model.args == {}
    assert load_config("fast_article", model={"name": "compact"}).model.args == {}
    assert load_config("record").model.whitening
    assert not load_config("record", model={"name": "article"}).model.whitening
    both = load_config("quickstart", model={"factory": "mine:net", "args": {"width": 3}})
    assert both.model.args == {"width": 3}
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: quickstart\nmodel: {factory: 'mine:net'}\n")
    assert load_config(str(file)).model.args == {}
