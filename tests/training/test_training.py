import dataclasses
import hashlib
import itertools
import json
import os
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import DataConfig
from distcnn.config.recipe import settings_of_run
from distcnn.data.dataset import load_split
from distcnn.data.sources import open_source
from distcnn.errors import DistcnnError
from distcnn.evaluate import main
from distcnn.models.article import article
from distcnn.models.compact import compact, patch_filters
from distcnn.storage.summary import hash_weights
from distcnn.training.trainer import Trainer
from tests.runs import rows, small_config, small_run
from tests.tiny import Seen, tiny


def test_article_is_the_published_network():
    model = article((32, 32, 3), 10)
    trainable = sum(int(np.prod(w.shape)) for w in model.trainable_weights)
    assert (model.count_params(), trainable) == (2_264_458, 2_263_114)
    kinds = [type(layer).__name__ for layer in model.layers]
    convolution = ["Conv2D", "Activation", "Dropout", "BatchNormalization"]
    pooled = ["Conv2D", "Activation", "MaxPooling2D", "Dropout", "BatchNormalization"]
    dense = ["Dense", "Activation", "Dropout", "BatchNormalization"]
    stages = [convolution, pooled, pooled, convolution, ["Flatten", "Dropout"], dense, dense]
    assert kinds == [*itertools.chain(*stages), "Dense", "Activation"]
    norms = [layer.kernel_constraint for layer in model.layers if type(layer) is keras.layers.Dense]
    assert [getattr(norm, "max_value", None) for norm in norms] == [3, 3, None]


def test_compact_is_what_its_docstring_says():
    model = compact((32, 32, 3), 10)
    assert model.count_params() == 983_274
    assert model.output_shape == (None, 10)
    multiplications = sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    assert round(multiplications / 1e6) == 24
    small = compact((8, 8, 1), 3, widths=[24, 8])
    assert small.output_shape == (None, 3)
    filters = patch_filters(3, 54).reshape(27, 54)
    assert np.allclose(filters[:, ::2].T @ filters[:, ::2], np.eye(27), atol=1e-6)
    assert np.array_equal(filters[:, 1::2], -filters[:, ::2])
    assert np.allclose(filters[:, 0], np.full(27, 27**-0.5))  # grey first
    assert np.array_equal(model.layers[1].kernel, patch_filters(3, 32))
    first = small.layers[1].kernel.numpy()
    assert np.array_equal(first[..., :18], patch_filters(1, 24))
    assert np.all(first[..., 18:].std(axis=(0, 1, 2)) > 0)


def test_the_head_is_float32_under_mixed_precision():
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = article((32, 32, 3), 10)
    finally:
        keras.config.set_dtype_policy(before)
    assert model(np.zeros((1, 32, 32, 3), np.float32)).dtype == tf.float32
    assert model.layers[0].compute_dtype == "bfloat16"
    assert {w.dtype for w in model.weights} == {"float32"}


def test_fit_is_plain_keras_on_the_same_batches(tmp_path):
    trainer = Trainer(
        small_config(
            tmp_path / "run",
            model__args={"dropout": 0.0},
            optimizer__name="sgd",
            optimizer__lr=0.05,
        )
    )
    start = trainer.model.get_weights()
    batches = [(np.array(x), np.array(y)) for x, y, _ in trainer.setup.training_batches(0)]
    summary = trainer.fit()
    assert summary is not None

    plain = tiny((32, 32, 3), 10, dropout=0.0)
    plain.set_weights(start)
    plain.compile(keras.optimizers.SGD(0.05, 0.9, nesterov=True), "categorical_crossentropy")
    for images, labels in batches:
        plain.train_on_batch(images.astype(np.float32) / 255, labels)
    assert len(batches) == summary["steps"] == 14
    for ours, theirs in zip(trainer.model.get_weights(), plain.get_weights(), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_run_directory_holds_what_the_contract_says(tmp_path):
    run = tmp_path / "run"
    summary = small_run(run)
    names = {p.name for p in run.iterdir()}
    assert names >= {
        "config.yaml",
        "environment.json",
        "metrics.jsonl",
        "summary.json",
        "model.keras",
        "checkpoints",
    }
    assert summary == json.loads((run / "summary.json").read_text())
    assert summary["recipe"] == "small"
    assert summary["strategy"] == "one_device"
    assert (summary["world_size"], summary["precision"], summary["xla"]) == (1, "float32", False)
    assert (summary["epochs"], summary["steps"]) == (2, 14)
    assert (summary["global_batch_size"], summary["learning_rate"]) == (32, 1e-3)
    assert summary["weights_agree"] is True
    assert summary["train_seconds"] > 0
    assert summary["images_per_second"] > 0

    model = keras.saving.load_model(run / "model.keras")
    digest = hashlib.sha256(b"".join(np.asarray(w, np.float32).tobytes() for w in model.weights))
    assert summary["weights_sha256"] == digest.hexdigest() == hash_weights(model.weights)
    assert summary["parameters"] == model.count_params()

    lines = rows(run)
    assert [(row["step"], row["epoch"]) for row in lines] == [
        (3, 1),
        (6, 1),
        (7, 1),
        (9, 2),
        (12, 2),
        (14, 2),
    ]
    keys = {"step", "epoch", "loss", "accuracy", "learning_rate"}
    keys |= {"images_per_second", "step_ms", "input_wait"}
    assert all(set(row) >= keys for row in lines)
    assert [row["step"] for row in lines if "val_loss" in row] == [7, 14]
    assert summary["val_accuracy"] == lines[-1]["val_accuracy"] is not None
    assert all(0 <= row["input_wait"] <= 1 for row in lines)

    environment = json.loads((run / "environment.json").read_text())
    assert environment["resolved"]["global_batch_size"] == 32
    assert environment["resolved"]["xla_reason"]
    assert settings_of_run(run)["data.synthetic_examples"] == 230


def test_evaluation_counts_every_image_once(tmp_path):
    one = small_run(tmp_path / "one", train__eval_batch_size=7)
    all_at_once = small_run(tmp_path / "all", train__eval_batch_size=512)
    for key in ("val_accuracy", "test_accuracy", "val_loss", "test_loss"):
        assert one[key] == pytest.approx(all_at_once[key], rel=1e-5)


@pytest.mark.parametrize("steps", [2, 5, 100])
def test_steps_per_execution_changes_no_weight(tmp_path, steps):
    plain = small_run(tmp_path / "plain")
    grouped = small_run(tmp_path / "grouped", train__steps_per_execution=steps)
    assert grouped["weights_sha256"] == plain["weights_sha256"]
    assert grouped["steps"] == plain["steps"]
    assert rows(tmp_path / "grouped")[-1]["loss"] == rows(tmp_path / "plain")[-1]["loss"]


def test_the_seed_decides(tmp_path):
    first = small_run(tmp_path / "first")
    again = small_run(tmp_path / "again")
    other = small_run(tmp_path / "other", train__seed=22)
    assert first["weights_sha256"] == again["weights_sha256"] != other["weights_sha256"]


def test_user_callbacks_see_the_classifier(tmp_path):
    Seen.log.clear()
    small_run(tmp_path / "run", train__callbacks=["tests.tiny:Seen"])
    names = ["accuracy", "loss"]
    assert Seen.log[0] == ("begin", "tiny", 2, 7)
    assert [entry for entry in Seen.log if entry[0] == "batch"] == [
        ("batch", batch, names) for batch in (*range(7), *range(7))
    ]
    every = ["accuracy", "loss", "val_accuracy", "val_loss"]
    assert [entry for entry in Seen.log if entry[0] == "epoch"] == [
        ("epoch", 0, every),
        ("epoch", 1, every),
    ]
    assert Seen.log[-1] == ("end",)


def test_keras_callbacks_work_unchanged(tmp_path):
    saved = tmp_path / "saved.keras"
    losses: list[float] = []
    callbacks = [
        keras.callbacks.LambdaCallback(
            on_train_batch_end=lambda batch, logs: losses.append(logs["loss"])
        ),
        keras.callbacks.ModelCheckpoint(saved),
        keras.callbacks.LearningRateScheduler(lambda epoch, rate: 0.5 * rate),
        keras.callbacks.EarlyStopping(monitor="val_loss", min_delta=1e9, patience=1),
    ]
    trainer = Trainer(small_config(tmp_path / "run", train__epochs=5), callbacks)
    summary = trainer.fit()
    assert summary is not None
    assert summary["epochs"] == 2
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(2.5e-4)
    assert len(losses) == 14
    model = keras.saving.load_model(saved)
    assert model.name == "tiny"
    assert hash_weights(model.weights) == summary["weights_sha256"]


def test_schedules_are_saved_with_models(tmp_path):
    saved = tmp_path / "saved.keras"
    trainer = Trainer(
        small_config(tmp_path / "run", optimizer__schedule="cosine"),
        [keras.callbacks.ModelCheckpoint(saved)],
    )
    trainer.fit()
    assert rows(tmp_path / "run")[-1]["learning_rate"] == pytest.approx(0, abs=1e-8)
    rate = float(keras.saving.load_model(saved).optimizer.learning_rate)
    assert rate == pytest.approx(0, abs=1e-8)


def test_a_factory_may_choose_its_own_input_and_return_logits(tmp_path):
    trainer = Trainer(
        small_config(
            tmp_path / "run",
            data__name="digits",
            data__augment__flip=False,
            data__augment__crop=0,
            model__factory="tests.tiny:fixed_input",
            optimizer__lr=0.01,
            train__epochs=6,
        )
    )
    assert trainer.setup.dataset.train.image_shape == (8, 8, 1)
    assert trainer.setup.interface.logits
    summary = trainer.fit()
    assert summary is not None
    assert summary["test_accuracy"] > 0.8


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"model__factory": "tests.tiny:tinny"}, "did you mean tiny?"),
        ({"model__factory": "tests.none:tiny"}, "there is no module 'tests.none'"),
        ({"model__factory": "tests.tiny:not_a_model"}, "returned a str; expected a keras.Model"),
        ({"model__factory": "tests.tiny:wrong_width"}, "expected (None, 10)"),
        ({"model__factory": "tests.tiny:Subclassed"}, "return it as keras.Model(inputs, model"),
        ({"model__factory": "tests.tiny:unsaved"}, "a model that Keras cannot save"),
        ({"logging__profile": "3,99", "logging__tensorboard": True}, "the run has 14 steps"),
        ({"model__args": {"drop": 1}}, "did you mean dropout?"),
        ({"train__callbacks": ["tests.tiny:Sen"]}, "did you mean Seen?"),
        ({"train__batch_size": 4000}, "larger than the 207 training images"),
    ],
)
def test_bad_models_and_sizes_leave_nothing_behind(tmp_path, overrides, message):
    with pytest.raises(DistcnnError) as error:
        Trainer(small_config(tmp_path / "run", **overrides)).fit()
    assert message in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_model_that_keras_will_not_load_is_announced(tmp_path, caplog):
    Trainer(small_config(tmp_path / "run", model__factory="tests.tiny:with_lambda"))
    assert "refuses to load" in caplog.text


def test_test_flip_averages_over_mirror_images_now_and_later(tmp_path):
    summary = small_run(tmp_path / "run", train__test_flip=True)
    model = keras.saving.load_model(tmp_path / "run" / "model.keras", compile=False)
    data = DataConfig(name="synthetic", synthetic_examples=230)
    split = load_split(data, open_source(data), (32, 32, 3), 21, "test")
    images = split.gather(np.arange(len(split))).numpy() / np.float32(255)
    both = [model.predict(part, verbose=0) for part in (images, images[:, :, ::-1])]
    labels = split.labels
    mean = np.mean(both, axis=0)
    expected = -np.mean(np.log(mean[np.arange(len(labels)), labels]))
    assert summary["test_loss"] == pytest.approx(expected, rel=1e-5)
    once = -np.mean(np.log(both[0][np.arange(len(labels)), labels]))
    assert abs(once - expected) > 1e-3
    main([str(tmp_path / "run"), "--json", str(tmp_path / "found.json")])
    found = json.loads((tmp_path / "found.json").read_text())
    assert found["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_average_of_the_weights_is_evaluated_and_saved(tmp_path):
    overrides = {"data__validation": "test", "optimizer__ema": 0.9, "optimizer__lr": 0.01}
    averaged = small_run(tmp_path / "averaged", **overrides)
    plain = small_run(tmp_path / "plain", **overrides | {"optimizer__ema": 0.0})
    assert averaged["weights_sha256"] != plain["weights_sha256"]
    assert averaged["loss"] == plain["loss"]  # training itself is the same
    assert averaged["val_loss"] == pytest.approx(averaged["test_loss"], rel=1e-6)


def test_early_stopping_keeps_the_best_epoch(tmp_path):
    summary = small_run(
        tmp_path / "run",
        train__epochs=30,
        train__early_stopping=2,
        optimizer__name="sgd",
        optimizer__lr=1.5,
        model__args={"dropout": 0.9},
    )
    losses = [row["val_loss"] for row in rows(tmp_path / "run") if "val_loss" in row]
    best = int(np.argmin(losses))
    assert summary["epochs"] == len(losses) == best + 3 < 30
    assert summary["saved_epoch"] == best + 1
    assert summary["val_loss"] == losses[best]


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_mixed_precision_trains_with_float32_variables(tmp_path, policy):
    trainer = Trainer(small_config(tmp_path / "run", precision__policy=policy))
    try:
        summary = trainer.fit()
    finally:
        keras.config.set_dtype_policy("float32")
    assert summary is not None
    assert summary["precision"] == policy
    assert {w.dtype for w in trainer.model.weights} == {"float32"}
    assert np.isfinite(summary["loss"])
    assert hasattr(trainer.setup.optimizer, "inner_optimizer") == (policy == "mixed_float16")


@pytest.mark.parametrize(("at", "kept"), [(3, []), (10, ["step-00000007"])])
def test_a_loss_that_is_no_number_stops_and_names_the_step(tmp_path, at, kept):
    run = tmp_path / "run"
    overrides = {
        "model__factory": "tests.tiny:exploding",
        "model__args": {"at": at},
        "logging__every_steps": 2,
        "train__epochs": 3,
    }
    with pytest.raises(DistcnnError, match=f"the loss of step {at} is not finite"):
        small_run(run, **overrides)
    assert [p.stem for p in run.glob("checkpoints/step-*.npz")] == kept
    assert all(np.isfinite(row["loss"]) for row in rows(run))
    assert not (run / "summary.json").exists()


def test_out_may_not_hold_something_else(tmp_path):
    run = tmp_path / "run"
    small_run(run)
    with pytest.raises(DistcnnError, match="holds a finished run; choose another --out"):
        small_run(run)
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("precious")
    with pytest.raises(DistcnnError, match="holds files that are not a run"):
        small_run(other)
    assert [p.name for p in other.iterdir()] == ["thesis.txt"]
    with pytest.raises(DistcnnError, match="is a file"):
        small_run(other / "thesis.txt")
    with pytest.raises(DistcnnError, match="cannot be written"):
        small_run("/proc/run")


def test_without_out_the_next_free_folder_is_taken(tmp_path):
    config = dataclasses.replace(small_config("unused"), out=None)
    for _ in range(2):
        Trainer(config).fit()
    assert {p.name for p in Path("runs").iterdir()} == {"small", "small-2"}


def test_two_processes_cannot_share_a_run_directory(tmp_path):
    first = Trainer(small_config(tmp_path / "run"))
    first.directory.create(first.config, {"resolved": first.setup.resolved()})
    second = Trainer(small_config(tmp_path / "run"))
    with pytest.raises(DistcnnError, match="another process trains"):
        second.fit()
    first.directory.close()
    small_run(tmp_path / "run")


def test_threads_cannot_change_once_tensorflow_runs(tmp_path):
    tf.constant(1)
    with pytest.raises(DistcnnError, match="TensorFlow already runs"):
        Trainer(small_config(tmp_path / "run", precision__threads=os.cpu_count() or 1 + 1))


def test_live_progress_and_lines(tmp_path, capsys):
    small_run(tmp_path / "lines", logging__progress="lines")
    out = capsys.readouterr().out
    assert "step      7/14  epoch  1/2  loss" in out
    assert "val_accuracy" in out
    assert "images/s" in out
    assert "ms/step" in out
    assert "input wait" in out
    small_run(tmp_path / "live", logging__progress="live")
    assert "epoch  2/2  loss" in capsys.readouterr().out
    small_run(tmp_path / "none")
    assert capsys.readouterr().out == ""
