"""Sets the first convolution to filters that whiten the patches of the training images."""

from typing import Any

import keras
import numpy as np

from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import all_layers

WHITENED_IMAGES = 2000
"""Images whose patches are looked at: with 32x32 pixels, two million patches of 12 values."""

_EPSILON = 5e-4
"""Added to each variance, so that directions of almost no variance are not blown up."""


def whiten_first_convolution(model: keras.Model, images: np.ndarray) -> None:
    """Sets and freezes the first convolution of a model.

    The method is that of Jordan 2024, arXiv:2404.00498, section 3.1.
    Its filters become the principal components of the images' patches, in the order of their
    variance, each divided by its standard deviation and once with each sign. Filters beyond twice
    the number of values in a patch keep their initial weights.

    Args:
        model: Built model.
        images: float32 of shape `(count, height, width, channels)`, as the model takes them.

    Raises:
        UsageError: If the model has no such convolution, or it has a bias, which would be frozen
            too.
    """
    first = _first_convolution(model)
    channels = images.shape[-1]
    if first is None or first.kernel.shape[2] != channels or first.use_bias:
        found = "no convolution" if first is None else f"{first.name}, {tuple(first.kernel.shape)}"
        raise UsageError(
            f"model.whitening is true, but the model starts with {found}; expected a Conv2D on the "
            f"{channels} channels of the images, with use_bias=False"
        )
    kernel = first.kernel.numpy()
    filters = whitening_filters(images, kernel.shape[0], kernel.shape[1])
    count = min(filters.shape[-1], kernel.shape[-1])
    kernel[..., :count] = filters[..., :count]
    first.kernel.assign(kernel)
    first.trainable = False


def _first_convolution(model: keras.Model) -> Any:
    found = (layer for layer in all_layers(model) if isinstance(layer, keras.layers.Conv2D))
    return next(found, None)


def whitening_filters(images: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns filters whose outputs are uncorrelated over the patches of images, with variance 1.

    Args:
        images: float32 of shape `(count, rows, columns, channels)`.
        height: Rows of a patch.
        width: Columns of a patch.

    Returns:
        float32 of shape `(height, width, channels, 2 * height * width * channels)`: for each
        principal component, the one of greatest variance first, a filter and its negative.
    """
    windows = np.lib.stride_tricks.sliding_window_view(images, (height, width), axis=(1, 2))
    patches = np.moveaxis(windows, 3, 5).reshape(-1, height * width * images.shape[-1])
    second = patches.T @ patches / np.float32(len(patches))
    variances, components = np.linalg.eigh(second.astype(np.float64))
    scaled = (components / np.sqrt(variances + _EPSILON)).T[::-1]
    both = np.stack([scaled, -scaled], axis=1).reshape(-1, height, width, images.shape[-1])
    return np.moveaxis(both, 0, -1).astype(np.float32)
