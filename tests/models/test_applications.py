"""Networks of keras.applications by name: their pixels, their weights and what is refused."""

import importlib
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from distcnn.config import ModelConfig
from distcnn.data.pixels import scale_pixels
from distcnn.errors import DistcnnError, UsageError
from distcnn.models.building import build_model
from distcnn.models.catalog import APPLICATIONS
from distcnn.models.pixel_range import resolve_pixels

SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "ResNet50": ("resnet", {}),  # Caffe's order of colours
    "DenseNet121": ("densenet", {}),  # PyTorch's normalisation
    "MobileNetV2": ("mobilenet_v2", {"alpha": 0.35}),  # [-1, 1]
    "MobileNetV3Small": ("mobilenet_v3", {"minimalistic": True}),  # scales by itself
}
"""A network for each kind of preprocessing, with the module that has its `preprocess_input`."""


def test_all_networks_of_keras_are_known():
    there = {name for name in dir(keras.applications) if name[0].isupper()}
    assert set(APPLICATIONS) == there


@pytest.mark.parametrize("name", SMALL)
def test_the_network_gets_the_pixels_that_it_was_trained_on(name):
    module, arguments = SMALL[name]
    config = ModelConfig(name=name, args={**arguments, "dropout": 0.0})
    model = build_model(config, (64, 48, 3), 5)
    pixels, _ = resolve_pixels(model)
    images = np.random.default_rng(1).integers(0, 256, (2, 64, 48, 3), np.uint8)
    preprocess = importlib.import_module(f"keras.applications.{module}").preprocess_input
    expected = preprocess(images.astype(np.float32))
    place = next(i for i, layer in enumerate(model.layers) if isinstance(layer, keras.Model))
    received = keras.Model(model.inputs, model.layers[place - 1].output)
    np.testing.assert_allclose(received(scale_pixels(images, pixels)), expected, atol=1e-4)


def test_weights_from_a_file_are_those_of_the_network_and_others_are_refused(tmp_path):
    file, other = str(tmp_path / "a.weights.h5"), tmp_path / "b.weights.h5"
    args = {"alpha": 0.35, "dropout": 0.0}
    shape = (32, 32, 3)
    source = keras.applications.MobileNetV2(
        include_top=False, weights=None, input_shape=shape, pooling="avg", alpha=0.35
    )
    source.save_weights(file)
    model = build_model(ModelConfig(name="MobileNetV2", weights=file, args=args), shape, 7)
    (network,) = (layer for layer in model.layers if isinstance(layer, keras.Model))
    for mine, theirs in zip(network.get_weights(), source.get_weights(), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    assert model.output_shape == (None, 7)
    assert not model.layers[-1].get_weights()[0].any()  # all classes are alike at first
    other.write_bytes(b"no weights")
    with pytest.raises(DistcnnError, match="does not hold the weights of MobileNetV2"):
        build_model(ModelConfig(name="MobileNetV2", weights=str(other), args=args), shape, 7)
    with pytest.raises(UsageError, match=r"missing\.h5, which does not exist"):
        build_model(ModelConfig(name="MobileNetV2", weights="missing.h5", args=args), shape, 7)
    with pytest.raises(UsageError, match="article has no pretrained weights"):
        build_model(ModelConfig(weights="imagenet"), shape, 7)


def test_a_failed_download_names_the_file_to_bring(monkeypatch):
    def fail(*arguments, **keywords):
        raise Exception("URL fetch failure on https://a.b/c/net_no_top.h5: None -- no route")

    monkeypatch.setattr("keras.src.applications.mobilenet_v2.file_utils.get_file", fail)
    config = ModelConfig(name="MobileNetV2", weights="imagenet")
    with pytest.raises(DistcnnError, match=r"bring the file net_no_top\.h5 and put it into "):
        build_model(config, (96, 96, 3), 7)


def test_images_that_a_network_does_not_take_are_refused_and_grey_ones_are_taken():
    with pytest.raises(UsageError, match="which cannot be built for images of 32 x 32"):
        build_model(ModelConfig(name="InceptionV3"), (32, 32, 3), 7)
    args = {"alpha": 0.35}
    model = build_model(ModelConfig(name="MobileNetV2", args=args), (32, 32, 1), 7)
    assert model(tf.zeros((2, 32, 32, 1))).shape == (2, 7)
