"""The network of the speed records, and the whitening of its first convolution."""

import keras
import numpy as np
import pytest

from distcnn.errors import UsageError
from distcnn.models.airbench import airbench
from distcnn.models.whitening import whiten_first_convolution, whitening_filters


def test_airbench_is_what_its_docstring_says():
    model = airbench((32, 32, 3), 10)
    assert model.count_params() == 1_973_920
    multiplications = sum(
        int(np.prod(layer.kernel.shape)) * int(np.prod(layer.output.shape[1:3]))
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D)
    )
    assert round(multiplications / 1e6) == 118
    assert airbench((9, 9, 1), 3, widths=[8, 8, 8], activation="relu").output_shape == (None, 3)


def correlated_images() -> np.ndarray:
    random = np.random.default_rng(0)
    images = random.normal(size=(50, 12, 12, 3)).cumsum(1).cumsum(2)
    images += images.mean(-1, keepdims=True)
    return (images / images.std()).astype(np.float32)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    images = correlated_images()
    filters = whitening_filters(images, 2, 2)
    assert filters.shape == (2, 2, 3, 24)
    np.testing.assert_array_equal(filters[..., 1::2], -filters[..., ::2])
    outputs = keras.ops.conv(images, filters[..., ::2]).numpy().reshape(-1, 12)
    found = outputs.T @ outputs / len(outputs)
    np.testing.assert_allclose(found - np.diag(np.diag(found)), 0, atol=1e-2)
    # The greatest variances come first; 5e-4 is added to each, which shrinks the smallest.
    assert found[0, 0] == pytest.approx(1, abs=1e-3)
    norms = np.linalg.norm(filters.reshape(-1, 24), axis=0)
    assert (np.diff(norms[::2]) > 0).all()


def test_the_first_convolution_is_set_and_frozen():
    images = correlated_images()
    model = airbench((12, 12, 3), 4, widths=[8])
    before = len(model.trainable_variables)
    whiten_first_convolution(model, images)
    np.testing.assert_array_equal(
        model.get_layer("whitening").kernel, whitening_filters(images, 2, 2)
    )
    assert len(model.trainable_variables) == before - 1

    wide = keras.Sequential([keras.Input((12, 12, 3)), keras.layers.Conv2D(60, 2, use_bias=False)])
    initial = wide.layers[0].kernel.numpy()
    whiten_first_convolution(wide, images)
    np.testing.assert_array_equal(wide.layers[0].kernel[..., 24:], initial[..., 24:])
    assert not np.array_equal(wide.layers[0].kernel[..., :24], initial[..., :24])


@pytest.mark.parametrize(
    "layers", [[keras.layers.Flatten()], [keras.layers.Conv2D(4, 3)]], ids=["dense", "bias"]
)
def test_a_model_that_cannot_be_whitened_is_named(layers):
    model = keras.Sequential([keras.Input((12, 12, 3)), *layers])
    with pytest.raises(UsageError, match=r"model\.whitening is true, but .*use_bias=False"):
        whiten_first_convolution(model, correlated_images())
