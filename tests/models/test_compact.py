"""The small residual network."""

import keras
import numpy as np

from distcnn.models.compact import compact, patch_filters


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
