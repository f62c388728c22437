"""Values and files that no run could use are refused by name, before they cost time or memory."""

import re
import resource
import subprocess
import sys

import pytest

from distcnn.cli.parser import parse_config
from distcnn.config.recipe import load_recipe
from distcnn.config.safe_yaml import MAX_BYTES, read_yaml
from distcnn.errors import UsageError


@pytest.mark.parametrize(
    "key",
    [
        *("optimizer.lr", "optimizer.warmup_epochs", "optimizer.weight_decay"),
        *("optimizer.clip_norm", "optimizer.final_lr_factor", "optimizer.step_factor"),
        *("optimizer.momentum", "optimizer.ema", "data.validation_split"),
        *("data.augment.color", "data.augment.cutmix", "data.augment.mixup"),
        *("data.augment.label_smoothing", "data.augment.randaugment_magnitude"),
    ],
)
@pytest.mark.parametrize("value", [".inf", "-.inf", ".nan"])
def test_floats_are_finite(key, value):
    with pytest.raises(UsageError, match=rf"{re.escape(key)} is -?(inf|nan)"):
        parse_config("distcnn.train", "", [f"--{key}={value}"])


def test_floats_in_lists_are_finite():
    flags = ["--optimizer.schedule=step", "--optimizer.step_epochs=[1.0,.inf]"]
    with pytest.raises(UsageError, match=r"optimizer.step_epochs is \[1.0, inf\]"):
        parse_config("distcnn.train", "", flags)


@pytest.mark.parametrize(
    ("key", "value", "most"),
    [
        ("train.seed", 2**32, 2**32 - 1),
        ("precision.threads", 100_000, 1024),
        ("distribute.devices", 5000, 1024),
        ("data.augment.randaugment", 5000, 100),
        ("data.augment.crop", 10**6, 4096),
        ("data.image_size", 10**6, 8192),
    ],
)
def test_counts_are_bounded(key, value, most):
    with pytest.raises(UsageError, match=rf"{key} is {value}; expected at most {most}"):
        parse_config("distcnn.train", "", [f"--{key}={value}"])


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + n)}: &{chr(98 + n)} [{', '.join(f'*{chr(97 + n)}' for _ in range(9))}]\n"
    for n in range(9)
)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (BOMB.encode(), r"line 2 repeats a part by \*a; write it out"),
        (b"[" * 5000, "is nested more than 30 levels deep"),
        (b"{a: " * 5000, "is nested more than 30 levels deep"),
        (b"train: {epochs: 3}\xff", "byte 18 is not UTF-8"),
        (b"a: !!python/object/apply:os.system [true]", "could not determine a constructor"),
        (b"a: !!timestamp 99999-99-99", "."),
        (b"a: " + b"x" * MAX_BYTES, "is larger than 1,000,000 bytes"),
        (b"\x00", "special characters are not allowed"),
    ],
)
def test_hostile_recipes_are_refused_on_one_line(content, message, tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes(content)
    with pytest.raises(UsageError, match=rf"mine.yaml is not valid YAML: .*{message}") as error:
        load_recipe(str(file))
    assert "\n" not in str(error.value)


def test_plain_yaml_is_read(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("a: &name [1, 2.5, text, {b: null}]\n")
    assert read_yaml(file) == {"a": [1, 2.5, "text", {"b": None}]}


def test_a_bomb_takes_no_memory(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text(BOMB)
    code = f"from distcnn.config.recipe import load_recipe\nload_recipe({str(file)!r})"

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (600 * 2**20, 600 * 2**20))

    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        timeout=20,
        preexec_fn=limit,
        check=False,
    )
    assert "repeats a part by *a" in done.stderr
