"""A small residual CNN that learns fast: for the article's accuracy in a tenth of its time."""

from collections.abc import Sequence

import keras
from keras import layers


def compact(
    input_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (32, 64, 128, 256),
) -> keras.Model:
    """Builds a convolution for each width, halving the image before all but the first.

    Every convolution is followed by batch normalisation and relu, so none has a bias, and the last
    one has a residual convolution beside it (He et al. 2016). The image is halved before it is
    widened, which spends the operations where a CPU's and a GPU's kernels are at their best: for
    32x32x3 images a forward pass takes 24 million multiplications, the article's network 34. Global
    max pooling gives the features; there is no dense layer but the last. For 10 classes it has
    983,274 parameters.

    Args:
        input_shape: `(height, width, channels)`, at least 8 pixels a side for four widths.
        num_classes: Width of the softmax.
        widths: Channels of each stage.

    Returns:
        An uncompiled model with a float32 softmax of shape `(batch, num_classes)`.
    """
    images = keras.Input(input_shape)
    x = layers.Conv2D(widths[0], 3, padding="same", use_bias=False)(images)
    x = _normalised(layers.MaxPooling2D(2)(x))
    for stage, width in enumerate(widths[1:]):
        if stage:
            x = layers.MaxPooling2D(2)(x)
        x = _convolved(x, width)
    x = layers.Add()([x, _convolved(x, widths[-1])])
    x = layers.Dense(num_classes, dtype="float32")(layers.GlobalMaxPooling2D()(x))
    outputs = layers.Activation("softmax", dtype="float32")(x)
    return keras.Model(images, outputs, name="compact")


def _convolved(x: keras.KerasTensor, width: int) -> keras.KerasTensor:
    return _normalised(layers.Conv2D(width, 3, padding="same", use_bias=False)(x))


def _normalised(x: keras.KerasTensor) -> keras.KerasTensor:
    # A short run must not evaluate by statistics from its beginning, hence the low momentum.
    return layers.Activation("relu")(layers.BatchNormalization(momentum=0.9)(x))
