"""The proof of runs of the trainer that are, and are not, in lockstep."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from distcnn.cli.parser import load_config
from distcnn.doctor import main
from distcnn.errors import DistcnnError, UsageError
from distcnn.proving import proof
from distcnn.proving.record import WEIGHT, Record

MODELS = """
import keras

@keras.saving.register_keras_serializable("tests")
class Centred(keras.layers.Layer):
    def call(self, x):
        return x - keras.ops.mean(x, axis=0, keepdims=True)

def net(input_shape, num_classes, layer):
    inputs = keras.Input(input_shape)
    x = keras.layers.Conv2D(4, 3, strides=4, name="conv")(inputs)
    if layer == "normalise":
        x = keras.layers.BatchNormalization(name="norm")(x)
    if layer == "centre":
        x = Centred()(x)
    x = keras.layers.Dropout(0.5)(keras.layers.Flatten()(x))
    return keras.Model(inputs, keras.layers.Dense(num_classes, "softmax", dtype="float32")(x))
"""

FLAGS = [
    *("--model.factory", "mine:net", "--data.name", "synthetic", "--data.synthetic_examples", "60"),
    *("--data.augment", "flip,crop,mixup", "--train.batch_size", "7", "--optimizer.ema=0.9"),
    *("--train.epochs", "2", "--train.steps_per_execution", "3", "--data.validation", "none"),
]


def prove(layer: str, *flags: str) -> int:
    Path("mine.py").write_text(MODELS)
    arguments = json.dumps({"layer": layer})
    return main(["--lockstep", "2", *FLAGS, "--model.args", arguments, *flags])


@pytest.mark.parametrize(
    ("layer", "code", "verdict", "fix"),
    [
        ("none", 0, "ok      lockstep                    5 steps in float64 on 1 and on 2", ""),
        (
            "normalise",
            0,
            "since batch normalisation uses each worker's own rows",
            "--distribute.sync_batchnorm true makes them equal",
        ),
        ("centre", 1, "differ, first weight conv/kernel", "mixes the rows of a batch"),
    ],
)
def test_the_verdict(layer, code, verdict, fix, capsys):
    assert prove(layer) == code
    printed = capsys.readouterr().out
    assert verdict in printed
    assert fix in printed
    assert {path.name for path in Path().iterdir()} <= {"mine.py", "__pycache__", "cache"}


def test_a_wrong_flag_starts_no_process(monkeypatch):
    def start(*arguments, **keywords):
        raise AssertionError("a process was started")

    monkeypatch.setattr(proof.subprocess, "run", start)
    for flag, value, message in (
        ("--train.batchsize", "7", "unknown argument --train.batchsize"),
        ("--optimizer.name", "adamm", "optimizer.name"),
        ("--train.global_batch_size", "1", "smaller than the 2 shards"),
        ("--train.epochs", "0", "train.epochs is 0"),
        ("--checkpoint.resume", "runs/a", "resume is runs/a, but the proof is of the first steps"),
    ):
        with pytest.raises(UsageError, match=message):
            prove("none", flag, value)


def test_data_of_the_users_own_are_for_a_script():
    flags = ("--data.factory", "mine:data", "--model.factory", "mine:net")
    with pytest.raises(UsageError, match="the proof of a run is for images of a data set"):
        main(["--lockstep", "2", *flags])


def test_the_steps_are_those_of_each_phase_from_the_weights_of_another_run():
    from tests.tiny import plain

    first = plain((32, 32, 3), 10)
    first.set_weights([weight + 1 for weight in first.get_weights()])
    first.save("first.keras")
    config = load_config(
        "quickstart",
        data={"name": "synthetic", "synthetic_examples": 60, "validation": "none"},
        model={"factory": "tests.tiny:plain"},
        optimizer={"name": "sgd", "lr": 1e-12, "lr_scaling": "none"},
        train={
            "global_batch_size": 16,  # 4 steps an epoch
            "phases": [{"train": "head", "epochs": 1, "learning_rate": 0.01}, {"epochs": 2}],
        },
        init_from="first.keras",
    )
    Path("config.yaml").write_text(config.to_yaml())
    subprocess.run(
        [sys.executable, "-m", "distcnn.proving.run_worker", "one.npz", "float64", "config.yaml"],
        check=True,
    )
    found = Record.load(Path("one.npz"))
    assert found.steps == 4 + 5
    after = [value for name, value in found.arrays.items() if name.startswith(WEIGHT)]
    moved = [np.abs(new - old).max() for new, old in zip(after, first.get_weights(), strict=True)]
    assert max(moved[:-2]) < 1e-6 < 1e-3 < min(moved[-2:])  # the head alone, in its phase


def test_what_fails_on_one_worker_is_told():
    with pytest.raises(DistcnnError, match=r"recipe article fails on one worker: .*nowhere"):
        prove("none", "--model.factory", "nowhere:net")


def test_the_configuration_is_only_printed(capsys):
    assert prove("none", "--print-config") == 0
    assert "synthetic_examples: 60" in capsys.readouterr().out


def test_the_command_without_tensorflow():
    code = "import sys, distcnn.doctor; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
