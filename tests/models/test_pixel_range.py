"""Pixels are not scaled twice."""

import logging
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

from distcnn.models.pixel_range import resolve_pixels


def beginning(*first: Any) -> keras.Model:
    body = [layers.Conv2D(4, 3), layers.GlobalAveragePooling2D(), layers.Dense(3)]
    return keras.Sequential([keras.Input((32, 32, 3)), *first, *body])


def preprocessed(function: Any) -> keras.Model:
    """A model that calls a `preprocess_input` of Keras before its body."""
    images = keras.Input((32, 32, 3))
    x = layers.Conv2D(4, 3)(function(images))
    return keras.Model(images, layers.Dense(3)(layers.GlobalAveragePooling2D()(x)))


def inside(first: keras.Model) -> keras.Model:
    images = keras.Input((32, 32, 3))
    return keras.Model(images, layers.Identity()(first(images)))


def normalization(mean: float, deviation: float) -> layers.Layer:
    return layers.Normalization(mean=[mean] * 3, variance=[deviation**2] * 3)


def application(name: str, **options: Any) -> keras.Model:
    build = getattr(keras.applications, name)
    model: keras.Model = build(weights=None, classes=3, input_shape=(32, 32, 3), **options)
    return model


apps = keras.applications

EXPECTED = {
    "byte": {
        "1/255": lambda: beginning(layers.Rescaling(1 / 255)),
        "1/127.5 - 1": lambda: beginning(layers.Rescaling(1 / 127.5, -1)),
        "after augmentation": lambda: beginning(
            layers.RandomFlip(), layers.RandomRotation(0.1), layers.Rescaling(1 / 255)
        ),
        "after resizing": lambda: beginning(layers.Resizing(24, 24), layers.Rescaling(1 / 255)),
        "padded": lambda: beginning(layers.Rescaling(1 / 255), layers.ZeroPadding2D(2)),
        "normalised bytes": lambda: beginning(normalization(120, 60)),
        "scaled and normalised": lambda: beginning(
            layers.Rescaling(1 / 255), normalization(0.48, 0.22)
        ),
        "nested": lambda: inside(beginning(layers.Rescaling(1 / 255))),
        "nested first": lambda: beginning(keras.Sequential([layers.Rescaling(1 / 255)])),
        "flat": lambda: keras.Sequential(
            [keras.Input((8, 8, 1)), layers.Rescaling(1 / 255), layers.Flatten(), layers.Dense(3)]
        ),
        "tf": lambda: preprocessed(apps.mobilenet_v2.preprocess_input),
        "torch": lambda: preprocessed(apps.densenet.preprocess_input),
        "caffe": lambda: preprocessed(apps.resnet50.preprocess_input),
        "MobileNetV3": lambda: application("MobileNetV3Small"),
        "EfficientNet": lambda: application("EfficientNetB0"),
        "EfficientNetV2": lambda: application("EfficientNetV2B0"),
        "EfficientNetV2 S": lambda: application("EfficientNetV2S"),
        "ConvNeXt": lambda: application("ConvNeXtTiny"),
    },
    "unit": {
        "nothing": lambda: beginning(),
        "batch normalisation": lambda: beginning(layers.BatchNormalization()),
        "padding": lambda: beginning(layers.ZeroPadding2D(2)),
        "2 x - 1": lambda: beginning(layers.Rescaling(2, -1)),
        "255": lambda: beginning(layers.Rescaling(255)),
        "normalised": lambda: beginning(normalization(0.48, 0.22)),
        "per image": lambda: beginning(layers.LayerNormalization(scale=False, center=False)),
        "ResNet": lambda: application("ResNet50"),
    },
    "signed": {
        "(x + 1) / 2": lambda: beginning(layers.Rescaling(0.5, 0.5)),
        "(x + 1) * 127.5": lambda: beginning(layers.Rescaling(127.5, 127.5)),
        "MobileNetV2": lambda: application("MobileNetV2"),
        "nested MobileNetV2": lambda: inside(application("MobileNetV2")),
        "ResNet V2": lambda: application("ResNet50V2"),
    },
}
CASES = [(pixels, name) for pixels, models in EXPECTED.items() for name in models]


@pytest.mark.parametrize(("pixels", "name"), CASES)
def test_the_range_that_a_model_expects_is_found(pixels, name, caplog):
    model = EXPECTED[pixels][name]()
    weights = model.get_weights()
    assert resolve_pixels(model)[0] == pixels
    assert not caplog.text
    for before, after in zip(weights, model.get_weights(), strict=True):
        np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("configured", ["unit", "signed"])
def test_what_the_user_says_wins_but_scaling_twice_is_warned_of(configured, caplog):
    model = beginning(layers.Rescaling(1 / 255))
    with caplog.at_level(logging.WARNING, "distcnn"):
        assert resolve_pixels(model, configured) == (configured, "as configured")
    assert f"data.pixels is {configured}, but byte is expected" in caplog.text
    assert "--data.pixels auto" in caplog.text


@pytest.mark.parametrize("configured", ["unit", "signed", "byte"])
def test_models_that_do_not_scale_take_any_range(configured, caplog):
    assert resolve_pixels(beginning(), configured) == (configured, "as configured")
    assert not caplog.text


class Hidden(keras.Model):
    """A model that cannot be seen into."""

    def __init__(self) -> None:
        super().__init__()
        self.head = layers.Dense(3)

    def call(self, images: Any) -> Any:
        return self.head(keras.ops.mean(images, (1, 2)))


def test_a_model_that_cannot_be_seen_into_gets_the_default():
    images = keras.Input((8, 8, 3))
    assert resolve_pixels(keras.Model(images, Hidden()(images))) == ("unit", "the default")
