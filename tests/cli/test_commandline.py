import subprocess
import sys
from typing import Any

import pytest
import tensorflow as tf
import yaml

from distcnn.cli.command import describe
from distcnn.cli.parser import parse_config
from distcnn.config.recipe import config_keys, load_recipe
from distcnn.errors import UsageError
from tests.runs import parse


def test_the_article_is_the_default_recipe():
    config = parse()
    assert config == parse("--recipe", "article")
    assert (config.recipe, config.train.seed, config.train.batch_size) == ("article", 21, 64)
    assert (config.train.epochs, config.optimizer.name, config.optimizer.lr) == (25, "adam", 1e-3)
    assert (config.data.name, config.data.pixels, config.data.validation) == (
        "cifar10",
        "auto",
        "test",
    )
    assert config.precision.policy == "float32"


def test_flags_replace_the_recipe_wherever_it_stands():
    before = parse("--recipe", "quickstart", "--train.epochs", "3")
    after = parse("--train.epochs", "3", "--recipe=quickstart")
    assert before == after
    assert (before.data.name, before.train.epochs) == ("digits", 3)


def test_augmentations_are_switched_on_by_name():
    augment = parse("--data.augment", "flip,crop,cutmix").data.augment
    assert (augment.flip, augment.crop, augment.cutmix, augment.cutout) == (True, 4, 1.0, 0)
    assert not parse("--data.augment=none").data.augment.flip
    assert parse("--data.augment", "crop", "--data.augment.crop", "2").data.augment.crop == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.dri", "x"], "unknown argument --data.dri; did you mean --data.dir?"),
        (["--epochs", "3"], "unknown argument --epochs; did you mean --train.epochs?"),
        (["--train.epochs", "x"], "train.epochs is 'x'; expected int"),
        (["--train.epochs", "2.5"], "train.epochs is '2.5'; expected int"),
        (["--train.callbacks", "a:B"], """is 'a:B'; expected a list, such as '["a:B"]'"""),
        (["--train.callbacks", "a:B,c:D"], """expected a list, such as '["a:B", "c:D"]'"""),
        (["--optimizer.step_epochs", "3, 4.5"], "expected a list, such as '[3, 4.5]'"),
        (["--train.phases", "head"], "expected a list of mappings, such as '[{"),
        (["--model.args", "x"], """is 'x'; expected a mapping, such as '{"name": 1}'"""),
        (["--train.epochs", "-1"], "train.epochs is -1; expected at least 1"),
        (["--train.batch_size", "0"], "train.batch_size is 0; expected at least 1"),
        (["--train.epochs"], "argument --train.epochs: expected one argument"),
        (["--data.name", "cifr10"], "did you mean cifar10?"),
        (["--data.augment", "flp"], "did you mean flip?"),
        (["--recipe", "quickstrt"], "did you mean quickstart?"),
        (["--recipe", "none.yaml"], "the recipe none.yaml does not exist"),
        (["--data.name", "folder"], "needs --data.dir DIR"),
        (["--data.name", "digits", "--data.dir", "d"], "did you mean --data.name folder?"),
        (["--optimizer.lr", "0"], "optimizer.lr is 0.0; expected a value above 0"),
        (["--optimizer.weight_decay", "0.1"], "use --optimizer.name adamw"),
        (["--optimizer.schedule", "step"], "needs --optimizer.step_epochs"),
        (["--optimizer.schedule", "one_cycle", "--optimizer.warmup_epochs", "1"], "drop --opt"),
        (["--train.early_stopping", "2", "--data.validation", "none"], "needs validation"),
        (["--data.validation", "split", "--data.validation_split", "0"], "validation none"),
        (["--data.validation_split", "1.5"], "expected 0 <= value < 1"),
        (["--model.factory", "mine"], "expected package.module:function"),
        (["--logging.profile", "9,3"], "expected FIRST,LAST"),
        (["--logging.profile", "1,2", "--logging.tensorboard", "false"], "needs TensorBoard"),
        (["--data.augment.randaugment_magnitude", "2"], "expected 0 <= value <= 1"),
    ],
)
def test_bad_flags_are_named_with_the_fix(arguments, message):
    with pytest.raises(UsageError) as error:
        parse(*arguments)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_help_documents_every_key_without_tensorflow():
    code = (
        "import sys\nfrom distcnn.train import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "assert 'tensorflow' not in sys.modules and 'keras' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    options = done.stdout.split("\n  --")
    for key in config_keys():
        described = [option for option in options if option.startswith(f"{key} ")]
        assert described, key
        assert len(described[0].split("\n", 1)[-1].split()) > 3, key


def test_print_config_is_yaml(capsys):
    assert parse_config("distcnn.train", "Trains.", ["--print-config"]) is None
    printed = yaml.safe_load(capsys.readouterr().out)
    assert printed["train"]["epochs"] == load_recipe("article")["train.epochs"]


def test_exit_codes_and_one_readable_line(run_module):
    usage = run_module("distcnn.train", "--train.epochs", "x")
    assert (usage.returncode, usage.stdout) == (2, "")
    assert usage.stderr == "error: train.epochs is 'x'; expected int\n"
    debug = run_module("distcnn.train", "--train.epochs", "x", "--debug")
    assert debug.returncode == 2
    assert "Traceback" in debug.stderr


def test_a_batch_per_worker_replaces_the_recipes_global_one(tmp_path):
    assert parse("--recipe", "quickstart").train.global_batch_size == 32
    changed = parse("--recipe", "quickstart", "--train.batch_size", "8").train
    assert (changed.batch_size, changed.global_batch_size) == (8, None)
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: quickstart\ntrain: {batch_size: 8}")
    assert parse("--recipe", str(file)).train.global_batch_size is None
    both = parse("--recipe", str(file), "--train.global_batch_size=64").train
    assert both.global_batch_size == 64


def test_a_damaged_file_is_named_without_what_tensorflow_wraps_around_it():
    wrapped = "{{function_node x}} DamagedFileError: /x was cut; start anew\nTraceback\n\t [[y]]"
    assert describe(RuntimeError(wrapped)) == "/x was cut; start anew"
    assert describe(ValueError("a\n b\x1b")) == r"a b\x1b"


def test_a_layer_that_mixes_precisions_is_named():
    mixed = "Input 'y' of 'AddV2' Op has type float32 that does not match type bfloat16"
    text = f"calling Outer.call().\nCould not: calling Shift.call(). {mixed} of argument 'x'."
    assert describe(TypeError(text)) == (
        f"the layer Shift computes with two types of numbers ({mixed}); cast its constants with "
        "ops.cast(x, self.compute_dtype), or pass --precision.policy float32"
    )
    eager = "input #1(zero-based) was expected to be a bfloat16 tensor but is a float tensor [Op:A]"
    assert describe(ValueError(eager)).startswith("the model computes with two types")


def test_a_layer_of_ones_own_fails_so_in_bfloat16():
    import keras

    class Shift(keras.layers.Layer):
        def call(self, x: Any) -> Any:
            return x + tf.ones(3, tf.float32)

    layer = Shift(dtype="mixed_bfloat16")
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)) as symbolic:
        layer(keras.Input((3,)))
    with pytest.raises((TypeError, ValueError, tf.errors.InvalidArgumentError)) as eager:
        layer(tf.ones((1, 3)))
    for error in (symbolic, eager):
        assert describe(error.value).startswith("the layer Shift computes with two types")
