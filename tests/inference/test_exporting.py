"""Exports: each format computes what the model computes, from pixels or from files."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml
from PIL import Image

import distcnn
from distcnn.config.recipe import data_of_run
from distcnn.data.file_list import FileList
from distcnn.data.folder import FolderSplit
from distcnn.data.framing import Framing
from distcnn.errors import DistcnnError, UsageError
from distcnn.export import _require_agreement
from distcnn.export import main as export_command
from distcnn.inference.exporting import formats
from distcnn.inference.exporting.decoding import decode_files
from distcnn.inference.exporting.exporter import Export, export_model
from distcnn.inference.exporting.parity import Parity
from distcnn.models.float32 import in_float32, short_policy
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from tests.data.samples import encoded, pixels

CLASSES = ("black cat", "dog", "owl")
SIDE = 16


def build(policy):
    layers = [
        keras.Input((SIDE, SIDE, 3)),
        keras.layers.Conv2D(12, 3, activation="relu", dtype=policy),
        keras.layers.BatchNormalization(dtype=policy),
        keras.layers.DepthwiseConv2D(3, dtype=policy),
        keras.layers.GlobalAveragePooling2D(dtype=policy),
        keras.layers.Dense(3, dtype="float32"),
    ]
    return keras.Sequential(layers)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of mixed precision that returns logits, with test-time flip and files of all kinds."""
    root = tmp_path_factory.mktemp("exporting")
    for split, count in (("train", 12), ("test", 6)):
        for label, name in enumerate(CLASSES):
            folder = root / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                array = pixels(40, 61, 100 * label + number)
                (folder / f"{number}.jpg").write_bytes(encoded(array, "JPEG"))
    keras.utils.set_random_seed(3)
    model = build("mixed_bfloat16")
    for variable in model.weights:  # far from the initial values
        variable.assign(variable + 0.5 * keras.random.normal(variable.shape, seed=4) ** 2)
    framing = {"resize": "crop", "crop_fraction": 0.75}
    metadata = ModelMetadata(CLASSES, "signed", logits=True, test_flip=True, preprocessing=framing)
    folder = root / "run"
    folder.mkdir()
    save_model(folder / "model.keras", model, metadata)
    data = {"name": "folder", "dir": str(root / "images"), **framing}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data, "out": str(folder)}))
    (folder / "environment.json").write_text("{}")
    return folder


def export(run, out, *wanted, **options):
    found = data_of_run(run)
    assert found is not None
    return export_model(run, out, wanted, *found, **options)


def require_close(report):
    """Checks the report of exports by what each precision can keep."""
    trained, reference = report.keras
    assert (trained.precision, reference.precision) == ("mixed_bfloat16", "float32")
    assert reference.parity.largest_difference == 0
    assert 0 < trained.parity.largest_difference < 0.1
    bounds = {"float32": (1e-5, 1), "float16": (0.02, 1), "int8": (0.5, 0.9)}
    for each in report.exports:
        difference, agreement = bounds[each.precision]
        assert each.parity.largest_difference < difference, each
        assert each.parity.agreement >= agreement, each
        assert each.parity.accuracy == pytest.approx(reference.parity.accuracy, abs=0.1)
        assert each.parity.milliseconds > 0


def test_savedmodel_and_litert_compute_the_same(run, tmp_path):
    precisions = ("float32", "float16", "int8")
    wanted = [(name, each) for name in ("savedmodel", "litert") for each in precisions]
    report = export(run, tmp_path, *wanted)
    require_close(report)
    assert (report.split, report.images) == ("test", 18)
    # By hand, without the code under test.
    loaded = tf.saved_model.load(str(tmp_path / "savedmodel")).signatures["serving_default"]
    files = sorted((run.parent / "images/test").rglob("*.jpg"))
    images = [np.asarray(Image.open(file).crop((15, 5, 45, 35))) for file in files]
    resized = [tf.image.resize(image, (SIDE, SIDE), antialias=True) for image in images]
    stored = np.round(np.stack(resized)).astype(np.uint8)
    plain = build("float32")
    plain.set_weights(keras.models.load_model(run / "model.keras").get_weights())
    scaled = stored / 127.5 - 1
    expected = tf.nn.softmax((plain(scaled) + plain(scaled[:, :, ::-1])) / 2)
    found = loaded(images=tf.constant(stored))["probabilities"]
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert np.ptp(found, axis=0).min() > 0.05
    description = json.loads((tmp_path / "export.json").read_text())
    assert description["classes"] == list(CLASSES)
    assert description["input"]["shape"] == ["batch", SIDE, SIDE, 3]
    assert (tmp_path / "labels.txt").read_text() == "black cat\ndog\nowl\n"
    by_precision = {each.precision: each for each in report.exports if each.format == "litert"}
    assert by_precision["int8"].size == (tmp_path / "model_int8.tflite").stat().st_size
    assert {path.name for path in tmp_path.iterdir()} == {
        *("export.json", "labels.txt", "savedmodel", "savedmodel_float16", "savedmodel_int8"),
        *("model.tflite", "model_float16.tflite", "model_int8.tflite"),
    }


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_other_runtimes_compute_the_same(name, run, tmp_path):
    entry = formats.FORMATS[name]
    for package in entry.packages + entry.for_int8:
        pytest.importorskip(package)
    report = export(run, tmp_path, (name, "float32"), (name, "float16"), (name, "int8"))
    require_close(report)


def test_bytes_in_labels_out(run, capsys):
    assert export_command([str(run), "--bytes_in", "--json", "report.json"]) == 0
    (row,) = json.loads(Path("report.json").read_text())["exports"]
    assert row["largest_difference"] < 1e-5
    assert row["path"] == str(run / "export/savedmodel_bytes")
    assert "compared on 18 test images" in capsys.readouterr().out
    loaded = tf.saved_model.load(row["path"])
    serve = loaded.signatures["serving_default"]
    files = sorted((run.parent / "images/test").rglob("*.jpg"))
    found = serve(images=tf.constant([file.read_bytes() for file in files]))
    predicted = distcnn.predict(run, files)
    np.testing.assert_allclose(
        found["probabilities"], [each.probabilities for each in predicted], atol=0.1
    )
    labels = [label.decode() for label in found["labels"].numpy()]
    assert labels == [CLASSES[best] for best in found["probabilities"].numpy().argmax(axis=1)]
    assert len(set(labels)) > 1
    with pytest.raises(tf.errors.InvalidArgumentError, match="no image of a format"):
        serve(images=tf.constant([b"RIFF1234WEBP", b""]))
    operations = {
        node.op
        for function in serve.graph.as_graph_def().library.function
        for node in function.node_def
    }
    assert not {operation for operation in operations if "PyFunc" in operation}


FRAMINGS = [
    Framing(),
    Framing("crop", 0.8),
    Framing("pad", 1.0),
    Framing("stretch", 0.5, reduced=False),
]


@pytest.mark.parametrize("framing", FRAMINGS, ids=str)
def test_files_are_decoded_as_in_training(framing, tmp_path):
    files = []
    for number, size in enumerate([(40, 61), (61, 40), (200, 310), (16, 16), (9, 5)]):
        array = pixels(*size, number)
        for orientation in range(1, 9):
            exif = Image.Exif()
            exif[0x0112] = orientation
            order = {"exif": exif.tobytes().replace(b"MM\0*", b"MM\0*")}
            files.append(encoded(array, "JPEG", **order))
        files += [encoded(array, kind) for kind in ("JPEG", "PNG", "BMP")]
        files.append(encoded(array, "PNG", "L"))
    little = Image.Exif()
    little.endian = "<"
    little[0x010F], little[0x0112] = "maker", 6
    files.append(encoded(pixels(30, 50), "JPEG", exif=little.tobytes()))
    names = []
    for number, content in enumerate(files):
        names.append(tmp_path / f"{number:03d}.jpg")
        names[-1].write_bytes(content)
    split = FolderSplit(FileList.of(names), np.zeros(len(names), np.int64))
    shape = (24, 20, 3)
    expected = split.resized(shape, framing).gather(tf.range(len(files), dtype=tf.int64)).numpy()
    decode = tf.function(lambda contents: decode_files(contents, shape, framing))
    found = decode(tf.constant(files)).numpy()
    for number in range(len(files)):
        np.testing.assert_array_equal(found[number], expected[number], err_msg=str(number))


def test_mixed_precision_is_rebuilt_in_float32():
    keras.utils.set_random_seed(1)
    inner = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3)], name="inner")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        image = keras.Input((8, 8, 3), dtype="float32")
        x = keras.layers.Conv2D(4, 3, activation="relu")(inner(image))
        x = keras.ops.cast(keras.layers.Flatten()(x), "float16") * 2
        model = keras.Model(image, keras.layers.Dense(2, dtype="float32")(x))
    finally:
        keras.config.set_dtype_policy("float32")
    rebuilt = in_float32(model)
    assert short_policy(model) == "mixed_float16"
    assert short_policy(rebuilt) is None
    images = np.random.default_rng(0).random((2, 8, 8, 3), np.float32)
    weights = [np.asarray(each) for each in model.get_weights()]
    x = tf.nn.conv2d(images, weights[0], 1, "VALID") + weights[1]
    x = tf.nn.relu(tf.nn.conv2d(x, weights[2], 1, "VALID") + weights[3])
    expected = tf.reshape(x, (2, -1)) * 2 @ weights[4] + weights[5]
    np.testing.assert_allclose(rebuilt(images), expected, atol=1e-5)
    assert in_float32(rebuilt) is rebuilt


def test_what_is_wrong_is_named(run, monkeypatch):
    def message(*flags):
        with pytest.raises(UsageError) as error:
            export_command([str(run), *flags])
        return str(error.value)

    assert "did you mean onnx" in message("--format", "savedmodel,onx")
    assert "--precision is 'float64'; expected one or more" in message("--precision", "float64")
    assert "expected --format savedmodel" in message("--format", "litert", "--bytes_in")
    assert "least_agreement is 2" in message("--least_agreement", "2")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    needs = 'needs openvino and nncf, which are not installed; pip install "distcnn[openvino]"'
    assert needs in message("--format", "openvino", "--precision", "int8")


def test_too_little_agreement_is_an_error(run):
    good = Export("onnx", "int8", run, 1, "", Parity(0.1, 0.96, 0.9, 1.0))
    bad = dataclasses.replace(good, parity=Parity(0.1, 0.94, 0.9, 1.0))
    _require_agreement([good], formats.LEAST_AGREEMENT)
    with pytest.raises(DistcnnError, match=r"1 of 2 exports .*onnx int8 \(0.9400, expected at lea"):
        _require_agreement([good, bad], formats.LEAST_AGREEMENT)
