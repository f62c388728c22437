"""The network of the CIFAR-10 speed records: a whitening layer and six wide convolutions."""

from collections.abc import Sequence

import keras
from keras import layers

_PATCH = 2
_LOGIT_SCALE = 1 / 9
_BATCHNORM_MOMENTUM = 0.6


def airbench(
    input_shape: tuple[int, int, int],
    num_classes: int,
    widths: Sequence[int] = (64, 256, 256),
    activation: str = "gelu",
    classifier_activation: str = "softmax",
) -> keras.Model:
    """Builds the network of Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds", section 3.

    The first convolution, of 2x2 pixels, has two filters for each value of a patch, and is meant
    for `model.whitening`, which sets and freezes it. Each block is a convolution, max pooling, and
    another convolution; both are followed by batch normalisation without a scale and an activation.
    The features come from global max pooling; the logits are scaled by 1/9, so that the first steps
    see small ones. For 32x32x3 images, a forward pass takes 118 million multiplications; with 10
    classes, the network has 1,973,920 parameters.

    Args:
        input_shape: `(height, width, channels)`, at least 9 pixels per side for three widths.
        num_classes: Number of outputs.
        widths: Channels of each block.
        activation: Activation of the blocks.
        classifier_activation: Activation of the outputs.

    Returns:
        An uncompiled model with a float32 output of shape `(batch, num_classes)`.
    """
    images = keras.Input(input_shape)
    filters = 2 * _PATCH**2 * input_shape[-1]
    x = layers.Conv2D(filters, _PATCH, use_bias=False, name="whitening")(images)
    x = layers.Activation(activation)(x)
    for width in widths:
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = _normalised(layers.MaxPooling2D(2)(x), activation)
        x = layers.Conv2D(width, 3, padding="same", use_bias=False)(x)
        x = _normalised(x, activation)
    x = layers.GlobalMaxPooling2D(dtype="float32")(x)
    x = layers.Dense(num_classes, use_bias=False, dtype="float32")(x)
    x = layers.Rescaling(_LOGIT_SCALE, dtype="float32")(x)
    outputs = layers.Activation(classifier_activation, dtype="float32")(x)
    return keras.Model(images, outputs, name="airbench")


def _normalised(x: keras.KerasTensor, activation: str) -> keras.KerasTensor:
    # The low momentum lets the moving statistics of a short run forget its first steps.
    x = layers.BatchNormalization(scale=False, momentum=_BATCHNORM_MOMENTUM)(x)
    return layers.Activation(activation)(x)
