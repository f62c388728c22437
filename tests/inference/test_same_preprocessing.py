"""A run's images are resized in the same way by evaluation and prediction."""

import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import yaml

import distcnn
from distcnn.config import DataConfig
from distcnn.config.recipe import data_of_run, preprocessing_of_run
from distcnn.predict import main as predict_command
from distcnn.storage.model_file import save_model
from distcnn.storage.model_metadata import ModelMetadata
from tests.data.samples import encoded, pixels


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run directory with an untrained model, and its images, which are no squares."""
    root = tmp_path_factory.mktemp("preprocessing")
    for label, name in enumerate(("cat", "dog")):
        folder = root / "images/test" / name
        folder.mkdir(parents=True)
        for number in range(3):
            array = pixels(48, 90, 10 * label + number)
            (folder / f"{number}.jpg").write_bytes(encoded(array, "JPEG"))
    keras.utils.set_random_seed(1)
    layers = [keras.Input((16, 16, 3)), keras.layers.Flatten(), keras.layers.Dense(2, "softmax")]
    model = keras.Sequential(layers)
    folder = root / "run"
    folder.mkdir()
    framing = {"resize": "crop", "crop_fraction": 0.5}
    metadata = ModelMetadata(("cat", "dog"), "unit", preprocessing=framing)
    save_model(folder / "model.keras", model, metadata)
    data = {"name": "folder", "dir": str(root / "images"), "resize": "crop", "crop_fraction": 0.5}
    data["augment"] = {"random_resized_crop": True}
    (folder / "config.yaml").write_text(yaml.safe_dump({"data": data | {"check": "auto"}}))
    (folder / "environment.json").write_text("{}")
    return folder


def test_predict_and_evaluate_agree_on_the_framing_of_the_run(run):
    images = run.parent / "images/test"
    evaluated = distcnn.evaluate(run).probabilities
    predicted = [found.probabilities for found in distcnn.predict(run, images)]
    np.testing.assert_allclose(predicted, evaluated, atol=1e-6)
    # By hand: the centre 24 x 24 pixels of 48 x 90, at the size of the model.
    file = (images / "cat/0.jpg").read_bytes()
    part = tf.image.decode_and_crop_jpeg(file, [12, 33, 24, 24], 3)
    resized = tf.round(tf.image.resize(part, (16, 16), antialias=True)) / 255
    model = keras.models.load_model(run / "model.keras")
    np.testing.assert_allclose(model(resized[None])[0], predicted[0], atol=2e-3)
    stretched = distcnn.predict(run, images, data=DataConfig())
    assert np.abs(stretched[0].probabilities - predicted[0]).max() > 0.01
    data = DataConfig(name="folder", dir=str(images.parent), check="start")
    np.testing.assert_allclose(distcnn.evaluate(run, data=data).probabilities, evaluated, atol=1e-6)


def test_flags_override_the_framing_of_the_run(run, capsys):
    image = str(run.parent / "images/test/dog/1.jpg")
    lines = []
    for flags in ([], ["--data.crop_fraction", "0.5"], ["--data.resize", "stretch"]):
        predict_command([str(run), image, *flags])
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] != lines[2]


def test_a_run_with_random_crops_checked_its_images_when_they_were_read(run):
    found = data_of_run(run)
    assert found is not None
    data = found[0]
    assert (data.resize, data.crop_fraction, data.check) == ("crop", 0.5, "reading")
    assert preprocessing_of_run({"data.check": "auto"}) == {"check": "auto"}
    assert preprocessing_of_run({}) == {}


def test_a_model_that_was_copied_out_of_its_run_keeps_the_framing(run, tmp_path, capsys):
    alone = tmp_path / "alone.keras"
    shutil.copy(run / "model.keras", alone)
    images = run.parent / "images/test"
    expected = [found.probabilities for found in distcnn.predict(run, images)]
    found = [found.probabilities for found in distcnn.predict(alone, images)]
    np.testing.assert_array_equal(found, expected)
    data = DataConfig(name="folder", dir=str(images.parent))
    np.testing.assert_allclose(
        distcnn.evaluate(alone, data=data).probabilities, expected, atol=1e-6
    )
    image = str(images / "dog/1.jpg")
    predict_command([str(run), image])
    predict_command([str(alone), image])
    first, second = capsys.readouterr().out.splitlines()
    assert first == second
