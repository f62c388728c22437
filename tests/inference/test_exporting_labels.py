"""Exports of models of several labels and of numbers."""

import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

from distcnn.errors import DistcnnError
from distcnn.export import main as export_command
from distcnn.inference.exporting.parity import compare
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from tests.data.samples import encoded, pixels

SIDE = 8
NAMES = {"multilabel": ("blue", "green", "red"), "regression": ("lux",)}


def coloured(count):
    """Images of all colours, bright and dark."""
    random = np.random.default_rng(1)
    noise = random.integers(0, 256, (count, SIDE, SIDE, 3))
    return (noise * random.random((count, 1, 1, 3))).astype(np.uint8)


def make_run(root, task):
    """A run whose model returns logits of three labels, or a number."""
    images = root / "images"
    images.mkdir()
    rows = []
    for number in range(20):
        (images / f"{number:02}.png").write_bytes(encoded(pixels(12, 12, number), "PNG"))
        tags = "|".join(name for bit, name in enumerate(NAMES["multilabel"]) if number >> bit & 1)
        rows.append(f"{number:02}.png,{tags if task == 'multilabel' else 100 + 7.5 * number}")
    column = {"multilabel": "tags", "regression": "lux"}[task]
    table = images / "labels.csv"
    table.write_text("\n".join([f"file,{column}", *rows]) + "\n")
    keras.utils.set_random_seed(5)
    layers = [
        keras.Input((SIDE, SIDE, 3)),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(len(NAMES[task]), kernel_initializer="glorot_normal"),
    ]
    if task == "regression":
        layers.append(keras.layers.Rescaling([40.0], [160.0]))
    model = keras.Sequential(layers)
    model.layers[0].kernel.assign(4 * model.layers[0].kernel)
    if task == "multilabel":  # about half of the images have each label
        logits = np.asarray(model(coloured(64) / np.float32(127.5) - 1))
        model.layers[-1].bias.assign(-np.median(logits, axis=0))
    run = root / "run"
    run.mkdir()
    metadata = ModelMetadata(NAMES[task], "signed", logits=task == "multilabel", task=task)
    save_model(run / "model.keras", model, metadata)
    data = {"labels": str(table), "test_split": 0.5, "validation_split": 0.4}
    (run / "config.yaml").write_text(yaml.safe_dump({"data": data, "out": str(run)}))
    (run / "environment.json").write_text("{}")
    return run, model


@pytest.mark.parametrize("task", NAMES)
def test_labels_and_numbers_are_exported(task, tmp_path, capsys):
    run, model = make_run(tmp_path, task)
    out = tmp_path / "out"
    assert export_command([str(run), "--format=savedmodel,litert", f"--out={out}"]) == 0
    assert ("mae" if task == "regression" else "accuracy") in capsys.readouterr().out
    assert export_command([str(run), "--bytes_in", f"--out={out}", "--json=report.json"]) == 0
    report = json.loads(Path("report.json").read_text())
    (row,) = report["exports"]
    assert (report["task"], row["agreement"]) == (task, 1.0)
    assert report["images"] == pytest.approx(10, abs=1)
    assert row["largest_difference"] < 1e-3
    assert (row["accuracy"] is None, row["mae"] is None) == (
        (True, False) if task == "regression" else (False, True)
    )
    description = json.loads((out / "export.json").read_text())
    name = "numbers" if task == "regression" else "probabilities"
    assert (description["task"], description["output"]["name"]) == (task, name)

    images = coloured(9)
    logits = np.asarray(model(images / np.float32(127.5) - 1), np.float64)
    expected = logits if task == "regression" else 1 / (1 + np.exp(-logits))
    serve = tf.saved_model.load(str(out / "savedmodel")).signatures["serving_default"]
    found = serve(images=tf.constant(images))
    assert list(found) == [name]
    np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 0.01
    files = [tf.io.encode_png(image).numpy() for image in images]
    serve = tf.saved_model.load(str(out / "savedmodel_bytes")).signatures["serving_default"]
    found = serve(images=tf.constant(files))
    np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-4)
    if task == "multilabel":
        labels = [
            "|".join(np.array(NAMES[task])[values > 0.5].tolist()).encode() for values in expected
        ]
        assert found["labels"].numpy().tolist() == labels
        assert len(set(labels)) > 1
    else:
        assert list(found) == [name]


def test_a_model_for_other_labels_is_refused(tmp_path):
    run, _ = make_run(tmp_path, "regression")
    table = tmp_path / "images/labels.csv"
    table.write_text("file,kind\n" + "".join(f"{i:02}.png,{'ab'[i % 2]}\n" for i in range(20)))
    with pytest.raises(DistcnnError, match="labels of the data are for classification, but"):
        export_command([str(run)])


def test_parity_by_hand():
    expected = np.array([[0.9, 0.2], [0.6, 0.4], [0.1, 0.1], [0.51, 0.7]])
    found = expected + [[0.0, 0.1], [-0.2, 0.0], [0.0, 0.0], [0.0, 0.0]]
    truth = np.array([[True, False], [True, False], [False, True], [True, True]])
    parity = compare(lambda rows: found[rows], np.arange(4), expected, truth, "multilabel")
    assert parity.largest_difference == pytest.approx(0.2)
    assert (parity.agreement, parity.accuracy, parity.mae) == (0.75, 0.5, None)
    # Numbers around 100 with a deviation of 10: a tenth of it is 1.
    truth = np.array([[90.0], [110.0], [90.0], [110.0]])
    found = truth + [[0.9], [-1.1], [np.nan], [0.0]]
    parity = compare(lambda rows: found[rows], np.arange(4), truth, truth, "regression")
    assert parity.largest_difference == np.inf
    assert (parity.agreement, parity.accuracy) == (0.5, None)
    same = np.full((4, 1), 90.0)
    assert compare(lambda rows: same[rows], np.arange(4), same, same, "regression").agreement == 1
