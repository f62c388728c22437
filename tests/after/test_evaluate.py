import json
import os
import shutil
import subprocess
import sys

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from distcnn.errors import DistcnnError, UsageError
from distcnn.evaluate import main
from tests.after.conftest import RUN
from tests.tiny import fixed_input


def evaluate(tmp_path, *arguments):
    """Evaluates with the plot in `tmp_path`, and returns the results."""
    out = tmp_path / "result.json"
    options = ["--plot", str(tmp_path / "plot.png"), "--json", str(out)]
    assert main([*map(str, arguments), *options]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize(
    ("split", "count"), [("test", 360), ("validation", 144), ("train", 1437 - 144)]
)
def test_it_agrees_with_keras_and_scikit_learn(split, count, finished, tmp_path):
    images, labels = finished.images(split)
    result = evaluate(tmp_path, finished.path, "--split", split)
    model = finished.model()
    probabilities = model.predict(images, verbose=0)
    predicted = probabilities.argmax(axis=1)
    loss, accuracy = model.evaluate(images, keras.utils.to_categorical(labels, 10), verbose=0)

    assert (result["data"], result["split"], result["images"]) == ("digits", split, count)
    assert result["model"] == str(finished.file)
    assert result["accuracy"] == pytest.approx(accuracy)
    assert result["loss"] == pytest.approx(loss, rel=1e-5)
    assert result["confusion_matrix"] == confusion_matrix(labels, predicted).tolist()
    expected = precision_recall_fscore_support(labels, predicted, zero_division=0)
    for row, *scores in zip(result["classes"], *expected, strict=True):
        assert [row[k] for k in ("precision", "recall", "f1", "images")] == pytest.approx(scores)
    assert [row["class"] for row in result["classes"]] == [str(digit) for digit in range(10)]


def test_it_finds_what_the_run_found(finished, tmp_path):
    summary = json.loads((finished.path / "summary.json").read_text())
    for split, name in (("test", "test"), ("validation", "val")):
        result = evaluate(tmp_path, finished.file, "--split", split)
        assert result["accuracy"] == pytest.approx(summary[f"{name}_accuracy"])
        assert result["loss"] == pytest.approx(summary[f"{name}_loss"], rel=1e-5)


def test_the_batch_size_changes_no_result(finished, tmp_path):
    small = evaluate(tmp_path, finished.path, "--batch_size", 7)
    large = evaluate(tmp_path, finished.path, "--batch_size", 512)
    assert small.pop("loss") == pytest.approx(large.pop("loss"), rel=1e-6)
    assert small == large


def test_tables_and_a_picture_are_shown(finished, tmp_path, capsys):
    copy = tmp_path / "run [1]"
    shutil.copytree(finished.path, copy)
    assert main([str(copy)]) == 0
    printed = capsys.readouterr().out
    picture = copy / "confusion_test.png"
    summary = json.loads((finished.path / "summary.json").read_text())
    lines = printed.splitlines()
    assert lines[-1] == f"confusion matrix as a picture: {picture}"
    assert lines[-2].startswith(f"images 360  accuracy {summary['test_accuracy']:.4f}  loss ")
    rows = [line.strip("│┃ ").split() for line in lines]
    assert ["class", "┃", "precision", "┃", "recall", "┃", "F1", "┃", "images"] in rows
    assert sum(row[:1] == ["7"] for row in rows) == 2  # a row in either table
    with Image.open(picture) as image:
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert len(np.unique(np.asarray(image.convert("L")))) > 50


def test_class_names_are_shown_as_they_are(tmp_path, image_folder, capsys):
    """Neither as terminal markup nor as formulas in the plot."""
    names = ["$\\foo$", "[red]"]
    for part in ("train", "test"):
        for old, new in zip(("cat", "dog"), names, strict=True):
            (image_folder / part / old).rename(image_folder / part / new)
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    )
    model.save("plain.keras")
    data = ["--data.name", "folder", "--data.dir", image_folder]
    result = evaluate(tmp_path, "plain.keras", *data)
    assert [row["class"] for row in result["classes"]] == names
    printed = capsys.readouterr().out
    assert all(printed.count(name) == 3 for name in names)  # a row in either table, a column


def test_any_name_survives_a_run_its_evaluation_and_predictions(tmp_path, image_folder):
    """Names that are neither UTF-8 nor harmless on a terminal."""

    def run(module, *arguments):
        command = [sys.executable, "-m", f"distcnn.{module}", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        assert not {0x1B, 0x07} & set(done.stdout + done.stderr)
        return done.stdout

    names = [os.fsdecode(b"caf\xe9"), "\x1b[2J"]
    for part in ("train", "test"):
        for old, new in zip(("cat", "dog"), names, strict=True):
            (image_folder / part / old).rename(image_folder / part / new)
    root = image_folder.rename(tmp_path / os.fsdecode(b"im\xe4ges"))
    data = ["--data.name=folder", f"--data.dir={root}", "--data.validation=test"]
    run("train", *RUN, *data, "--train.epochs=1", "--train.batch_size=8", "--out=run")
    table = run("evaluate", "run", "--json", "result.json").decode()
    assert table.count("\\x1b[2J") == table.count("caf\ufffd") == 3
    assert (tmp_path / "run/confusion_test.png").stat().st_size > 1000
    result = json.loads((tmp_path / "result.json").read_text())
    assert [row["class"] for row in result["classes"]] == ["\x1b[2J", "caf\ufffd"]
    image = root / "test" / names[0] / "00.png"
    line = run("predict", "run", image, "--json", "result.json")
    assert line.startswith(os.fsencode(image) + b"  ")
    assert "caf\ufffd".encode() in line
    assert json.loads((tmp_path / "result.json").read_text())[0]["image"] == str(image)


def test_output_files_are_checked_first(finished, tmp_path):
    for flag in ("--plot", "--json"):
        with pytest.raises(UsageError, match=f"{flag} .* is a folder; expected the name of a file"):
            main([str(finished.path), flag, str(tmp_path)])


def test_a_file_of_plain_keras_is_told_its_data(tmp_path):
    keras.utils.set_random_seed(0)
    model = fixed_input()  # logits, 8x8x1
    model.layers[-1].kernel.assign(model.layers[-1].kernel * 30)
    model.save("plain.keras")
    result = evaluate(tmp_path, "plain.keras", "--data.name", "digits")

    from distcnn.config import DataConfig
    from distcnn.data.sources import open_source

    test = open_source(DataConfig(name="digits")).test
    assert test is not None
    images = test.gather(np.arange(360)).numpy() / np.float32(255)
    logits = model.predict(images, verbose=0).astype(np.float64)
    logits -= logits.max(axis=1, keepdims=True)
    likelihood = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    loss = -likelihood[np.arange(360), test.labels].mean()
    assert loss > 16  # mean of -log(probability): many are below 1e-7
    assert likelihood.min() > -87  # but above what float32 holds
    assert result["loss"] == pytest.approx(loss, rel=1e-4)
    assert result["accuracy"] == np.mean(logits.argmax(axis=1) == test.labels)


def test_layers_of_the_users_own_are_found(tmp_path):
    (tmp_path / "own_layers.py").write_text(
        "import keras\n"
        "class Twice(keras.layers.Layer):\n"
        "    def call(self, x):\n"
        "        return 2 * x\n"
        "def factory():\n"
        "    return keras.Sequential([keras.Input((8, 8, 1)), Twice(), keras.layers.Flatten(),\n"
        "                             keras.layers.Dense(10, 'softmax')])\n"
    )
    from distcnn import train

    own = ["--model.factory=own_layers:factory", "--model.args={}", "--out=run"]
    assert train.main([*RUN, *own, "--logging.tensorboard=false"]) == 0
    result = evaluate(tmp_path, "run", "--trust")
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert result["accuracy"] == pytest.approx(summary["test_accuracy"])


def broken_model(tmp_path):
    (tmp_path / "broken.keras").write_bytes(b"not an archive")
    return tmp_path / "broken.keras"


def damaged_model(tmp_path):
    content = bytearray(sound(tmp_path).read_bytes())
    content[100:300] = bytes(200)
    (tmp_path / "damaged.keras").write_bytes(content)
    return tmp_path / "damaged.keras"


def unfinished_run(tmp_path):
    folder = tmp_path / "unfinished"
    folder.mkdir()
    return folder


def sound(tmp_path):
    model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(10)])
    model.save(tmp_path / "sound.keras")
    return tmp_path / "sound.keras"


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (broken_model, "broken.keras is not a model that Keras can load: File is not a zip file"),
        (damaged_model, "damaged.keras is not a model that Keras can load: "),
        (unfinished_run, "unfinished holds no model.keras; expected a finished run"),
        (lambda folder: folder / "none", "none does not exist; expected a run directory or a"),
        (sound, r"takes the input \(None, 5\); expected images"),
    ],
)
def test_what_is_no_classifier_is_refused(make, message, tmp_path):
    with pytest.raises(DistcnnError, match=message):
        main([str(make(tmp_path)), "--data.name", "digits"])


def test_wrong_flags_are_refused(finished, tmp_path):
    run = str(finished.path)
    with pytest.raises(UsageError, match="batch_size is 0; expected at least 1"):
        main([run, "--batch_size", "0"])
    with pytest.raises(UsageError, match="invalid choice: 'tset'"):
        main([run, "--split", "tset"])
    shutil.copy(finished.file, tmp_path / "moved.keras")
    with pytest.raises(UsageError, match=r"moved.keras belongs to no run.*--data.name NAME"):
        main(["moved.keras"])


def test_data_of_other_classes_is_refused(finished, image_folder):
    data = ["--data.name", "folder", "--data.dir", str(image_folder)]
    with pytest.raises(DistcnnError, match=r"the data has the classes cat, dog, the model was"):
        main([str(finished.path), *data])
    fixed_input().save("plain.keras")
    with pytest.raises(DistcnnError, match="the data has 2 classes, but the model has 10"):
        main(["plain.keras", *data])
