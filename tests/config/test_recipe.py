"""Recipe files: what they start from, and what is refused."""

import os

import pytest

from distcnn.config import OptimizerConfig
from distcnn.config.recipe import recipe_names
from distcnn.config.safe_yaml import read_yaml, sealed
from distcnn.errors import UsageError
from tests.runs import parse


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_configuration_reads_back_the_same(name, tmp_path):
    needed = ["--data.dir", "images"] if name == "finetune" else []
    config = parse("--recipe", name, "--model.args", '{"dropout": 0.1}', *needed)
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml())
    assert parse("--recipe", str(file)) == config


def test_a_recipe_file_starts_from_a_built_in_one(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: quickstart\ntrain: {epochs: 2}\n")
    config = parse("--recipe", str(file))
    assert (config.recipe, config.data.name, config.train.epochs) == ("mine", "digits", 2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {epoch: 3}", "unknown key train.epoch; did you mean train.epochs?"),
        ("tarin: {epochs: 3}", "unknown key tarin.epochs; did you mean train.epochs?"),
        ("train: {epochs: many}", "train.epochs is 'many'; expected int"),
        ("train: {epochs: [}", "is not valid YAML"),
        ("just words", "contains no keys"),
        ("recipe: artcle\ntrain: {epochs: 3}", "expected a built-in recipe to start from"),
    ],
)
def test_bad_recipe_files_are_named_with_the_fix(text, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(UsageError) as error:
        parse("--recipe", str(file))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_recipe_that_is_no_file_does_not_stop_the_reader(tmp_path):
    os.mkfifo(tmp_path / "recipe.yaml")
    with pytest.raises(UsageError, match="is not valid YAML: it is not a regular file"):
        parse(f"--recipe={tmp_path / 'recipe.yaml'}")


def test_a_sealed_file_that_was_changed_is_refused_until_its_seal_is_removed(tmp_path):
    path = tmp_path / "config.yaml"
    text = sealed("recipe: small\ntrain: {seed: 1}\n")
    path.write_text(text)
    assert read_yaml(path) == {"recipe": "small", "train": {"seed": 1}}
    for changed in (text.replace("seed: 1", "seed: 3"), text[: text.index("train")]):
        path.write_text(changed)
        with pytest.raises(ValueError, match="does not match the checksum in its first line"):
            read_yaml(path)
    path.write_text(text.partition("\n")[2].replace("seed: 1", "seed: 3"))
    assert read_yaml(path) == {"recipe": "small", "train": {"seed": 3}}


def test_bad_values_are_refused_from_python_too():
    with pytest.raises(UsageError, match=r"optimizer\.momentum is 1"):
        OptimizerConfig(momentum=1)
