"""Grad-CAM, against class activation maps and for every kind of model."""

from pathlib import Path

import keras
import numpy as np
import pytest

from distcnn.errors import DistcnnError
from distcnn.inference.classifier import Classifier
from distcnn.inference.details.gradcam import GradCam
from distcnn.models.article import article
from distcnn.storage.model_metadata import ModelMetadata

IMAGES = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), np.uint8)
OUTPUTS = np.array([1, 0, 2])


def explain(model, **metadata):
    classifier = Classifier(Path("model.keras"), model, ModelMetadata(**metadata))
    return GradCam(classifier).explain(IMAGES, OUTPUTS)


def pooled(activation):
    """A model for which Grad-CAM is the class activation map of Zhou et al. 2016."""
    return keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(5, 3, padding="same", activation="tanh"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(3, activation=activation),
        ]
    )


@pytest.mark.parametrize("activation", ["softmax", "sigmoid", None])
def test_it_is_the_class_activation_map_of_a_pooled_model(activation):
    keras.utils.set_random_seed(2)
    model = pooled(activation)
    found = explain(model, pixels="unit", logits=activation is None)
    features = np.asarray(model.layers[0](IMAGES / np.float32(255)))
    weights = np.asarray(model.layers[-1].kernel)[:, OUTPUTS].T
    expected = np.maximum(np.einsum("bhwc,bc->bhw", features, weights), 0)
    expected /= expected.max(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(found, expected, atol=2e-4)


def nested():
    body = keras.applications.MobileNetV3Small(
        input_shape=(32, 32, 3), include_top=False, weights=None, pooling="avg"
    )
    inputs = keras.Input((32, 32, 3))
    outputs = keras.layers.Dense(3, activation="softmax")(body(inputs))
    return keras.Model(inputs, outputs)


def branched():
    inputs = keras.Input((32, 32, 3))
    wide = keras.layers.Conv2D(4, 3, strides=4, padding="same", activation="relu")(inputs)
    both = keras.layers.Concatenate()([wide, keras.layers.Conv2D(4, 1)(wide)]) * 2
    return keras.Model(inputs, keras.layers.Dense(3)(keras.layers.Flatten()(both)))


def half():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        return article((32, 32, 3), 3)
    finally:
        keras.config.set_dtype_policy("float32")


@pytest.mark.parametrize("build", [lambda: article((32, 32, 3), 3), nested, branched, half])
def test_it_explains_models_of_every_kind(build):
    keras.utils.set_random_seed(1)
    model = build()
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.beta.assign(keras.random.normal(layer.beta.shape, seed=3))
    found = explain(model, logits=build is branched)
    assert found.shape == (3, 32, 32)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    assert found.min() >= 0
    peaks = found.max(axis=(1, 2))
    assert set(peaks.tolist()) <= {0, 1}  # of maps that are smaller than the image, too
    assert peaks.any()


def test_it_says_why_there_is_none():
    dense = keras.Sequential(
        [keras.Input((32, 32, 3)), keras.layers.Flatten(), keras.layers.Dense(3)]
    )
    with pytest.raises(DistcnnError, match="no Grad-CAM: the model has no convolution"):
        explain(dense)
    aside = keras.Input((32, 32, 3))
    means = keras.layers.GlobalAveragePooling2D()(keras.layers.Conv2D(2, 3)(aside))
    cut = keras.Model(aside, keras.layers.Dense(3)(keras.ops.stop_gradient(means)))
    with pytest.raises(DistcnnError, match="depend on no feature map"):
        explain(cut)
