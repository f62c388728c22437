"""`distcnn.train` on data of a user's own."""

import json
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from distcnn.cli.command import EXIT_STOPPED
from distcnn.errors import DataError, DistcnnError, UsageError
from distcnn.scripting.own_run import OwnDataRun
from distcnn.training.callbacks.non_finite import NotFiniteError
from distcnn.training.trainer import Trainer
from tests.runs import SignalAt, parse, rows
from tests.scripting import own

NAMES = ("--data.factory", "tests.scripting.own:two_outputs")


def run(out: Path, *flags: str) -> dict[str, Any]:
    common = ("--model.factory", "tests.scripting.own:model", "--train.epochs", "3")
    given = ("--train.batch_size", "16", "--logging.every_steps", "2", "--out", str(out))
    config = parse(*NAMES, *common, *given, "--logging.progress", "none", *flags)
    return OwnDataRun(config).fit()


def weights(folder: Path) -> list[np.ndarray]:
    found: list[np.ndarray] = keras.saving.load_model(folder / "model.keras").get_weights()
    return found


def test_a_run_is_keras_own_fit(tmp_path):
    summary = run(tmp_path / "run", "--train.fast_path", "off")
    keras.utils.set_random_seed(21)
    data, plain = own.two_outputs(), own.model()
    x, y, sample_weight = data["train"]
    history = plain.fit(
        x,
        y,
        sample_weight=sample_weight,
        batch_size=16,
        validation_data=data["validation"],
        validation_batch_size=512,  # Keras averages the loss of an output over batches
        epochs=3,
        verbose=0,
    ).history
    tested = plain.evaluate(*data["test"][:2], sample_weight=data["test"][2], return_dict=True)
    for ours, theirs in zip(weights(tmp_path / "run"), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    epochs = [row for row in rows(tmp_path / "run") if "val_loss" in row]
    assert [row["step"] for row in rows(tmp_path / "run")] == [2, 4, 5, 6, 8, 10, 12, 14, 15]
    for name, values in history.items():
        assert [row[name] for row in epochs] == pytest.approx(values, rel=1e-5), name
        assert summary[name] == epochs[-1][name]
    for name, value in tested.items():
        assert summary[f"test_{name}"] == pytest.approx(value, rel=1e-5)
    assert (summary["steps"], summary["global_batch_size"]) == (15, 16)
    assert summary["parameters"] == plain.count_params()
    with pytest.raises(DistcnnError, match="holds a finished run"):
        run(tmp_path / "run", "--train.fast_path", "off")


@pytest.mark.parametrize("kind", ["two_outputs", "stream", "sequence"])
def test_a_stopped_run_goes_on_to_the_same_weights(kind, tmp_path, monkeypatch):
    flags = ["--data.factory", f"tests.scripting.own:{kind}"]
    flags += ["--data.steps_per_epoch", "5"] if kind == "stream" else []
    whole = run(tmp_path / "whole", *flags)
    again = [*flags, "--train.callbacks", '["tests.scripting.test_own_data:stop"]']
    monkeypatch.setattr(sys.modules[__name__], "stops", iter([8, 10**9]))
    with pytest.raises(SystemExit) as stopped:
        run(tmp_path / "run", *again)
    assert stopped.value.code == EXIT_STOPPED
    assert not (tmp_path / "run" / "summary.json").exists()
    summary = run(tmp_path / "run", *again)
    assert summary["weights_sha256"] == whole["weights_sha256"]

    def untimed(folder: Path) -> list[dict[str, Any]]:
        times = ("images_per_second", "step_ms", "input_wait")
        return [{k: v for k, v in row.items() if k not in times} for row in rows(folder)]

    assert untimed(tmp_path / "run") == untimed(tmp_path / "whole")


stops = iter([10**9])


def stop() -> keras.callbacks.Callback:
    """Stops each run at its own batch."""
    return SignalAt(next(stops))


def test_a_loss_that_is_no_number_stops_the_run_and_is_not_saved(tmp_path):
    with pytest.raises(NotFiniteError, match="the loss is not finite at step 2 or before"):
        run(tmp_path / "run", "--model.factory", "tests.scripting.own:exploding")
    assert not (tmp_path / "run" / "summary.json").exists()
    assert not list((tmp_path / "run" / "checkpoints").glob("fit-*/step-*.npz"))


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    flags = ("--train.early_stopping", "1", "--train.epochs", "200")
    summary = run(tmp_path / "run", *flags, "--model.args", '{"width": 64}')
    losses = [row["val_loss"] for row in rows(tmp_path / "run") if "val_loss" in row]
    assert summary["saved_epoch"] == int(np.argmin(losses)) + 1 == len(losses) - 1 < 199
    assert summary["val_loss"] == min(losses)


@pytest.mark.parametrize(
    ("flags", "kind", "message"),
    [
        (("--data.factory", "tests.scripting.own:not_a_dictionary"), DataError, "a dictionary"),
        (("--data.factory", "tests.scripting.own:misspelt"), DataError, "'train', 'val'; expected"),
        (("--data.factory", "tests.scripting.own:of_different_lengths"), DataError, "of 5, 6 rows"),
        (("--model.factory", "tests.scripting.own:uncompiled"), DistcnnError, "call compile"),
        (
            ("--data.factory", "tests.scripting.own:sequence", "--train.early_stopping", "2"),
            DistcnnError,
            "returned no validation data",
        ),
    ],
)
def test_what_cannot_be_trained_is_said_by_name(flags, kind, message, tmp_path):
    with pytest.raises(kind, match=message):
        run(tmp_path / "run", *flags)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ((), "add --model.factory"),
        (("--model.factory", "m:f", "--data.augment.flip", "true"), "data.augment does not apply"),
        (("--model.factory", "m:f", "--optimizer.ema", "0.9"), "optimizer.ema does not apply"),
        (("--model.factory", "m:f", "--data.dir", "x"), "data.dir"),
    ],
)
def test_flags_for_images_are_refused_at_once(flags, message):
    with pytest.raises(UsageError, match=message):
        parse(*NAMES, *flags)


def test_a_recipe_s_values_for_images_are_left_out():
    config = parse("--recipe", "quickstart", *NAMES, "--model.factory", "m:f")
    assert config.data.augment == type(config.data.augment)()


def test_trainer_and_evaluate_send_to_what_takes_such_data(tmp_path, run_module):
    with pytest.raises(UsageError, match=r"distcnn.session and the model.s own fit"):
        Trainer(parse(*NAMES, "--model.factory", "tests.scripting.own:model"))
    (tmp_path / "config.yaml").write_text("data: {factory: 'mine:data'}\n")
    (tmp_path / "environment.json").touch()
    (tmp_path / "model.keras").touch()
    done = run_module("distcnn.evaluate", str(tmp_path))
    assert done.returncode == 2
    assert "was trained on the data of mine:data" in done.stderr


def test_two_workers_reach_the_weights_of_one(tmp_path, run_module):
    alone = run(tmp_path / "alone", "--train.global_batch_size", "16")
    flags = json.loads((tmp_path / "alone" / "environment.json").read_text())["resolved"]
    assert flags["training_images"] == 75
    done = run_module(
        *("distcnn.horovodrun", "-np", "2", sys.executable, "-m", "distcnn.train", *NAMES),
        *("--model.factory", "tests.scripting.own:model", "--train.epochs", "3"),
        *("--train.global_batch_size", "16", "--out", str(tmp_path / "two")),
    )
    assert done.returncode == 0, done.stderr
    for ours, theirs in zip(weights(tmp_path / "two"), weights(tmp_path / "alone"), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    assert summary["weights_agree"]
    for name in ("loss", "value_mae", "kind_auc", "val_loss", "test_kind_auc"):
        assert summary[name] == pytest.approx(alone[name], rel=1e-5), name
