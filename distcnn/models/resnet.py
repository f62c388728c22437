"""Residual networks for small and large images: ResNet-9, ResNet-18 and ResNet-50."""

from collections.abc import Sequence

import keras
from keras import layers

_SMALL_IMAGE = 64
"""Up to this many pixels of the shorter side, images get a stem that does not shrink them."""

_MOMENTUM = 0.9
_EPSILON = 1e-5


def resnet9(
    input_shape: tuple[int, int, int], num_classes: int, classifier_activation: str = "softmax"
) -> keras.Model:
    """Builds the network of Page 2018, "How to train your ResNet", for images of about 32 pixels.

    With 3 channels and 10 classes it has 6,573,120 weights that are trained. The logits are
    multiplied by 1/8, as there.

    Args:
        input_shape: `(height, width, channels)`, at least 8 pixels per side.
        num_classes: Number of outputs.
        classifier_activation: Activation of the outputs.

    Returns:
        An uncompiled model with a float32 output of shape `(batch, num_classes)`.
    """
    images = keras.Input(input_shape)
    x = _activated(_convolved(images, 64, 3, "stem"))
    for stage, width, has_block in ((1, 128, True), (2, 256, False), (3, 512, True)):
        x = _activated(_convolved(x, width, 3, f"stage{stage}"))
        x = layers.MaxPooling2D(2)(x)
        if has_block:
            name = f"stage{stage}_block1"
            inner = _activated(_convolved(x, width, 3, f"{name}_1"))
            x = layers.Add()([x, _activated(_convolved(inner, width, 3, f"{name}_2"))])
    x = layers.GlobalMaxPooling2D(dtype="float32")(x)
    x = layers.Dense(num_classes, use_bias=False, dtype="float32", name="head")(x)
    x = layers.Rescaling(1 / 8, dtype="float32")(x)
    outputs = layers.Activation(classifier_activation, dtype="float32")(x)
    return keras.Model(images, outputs, name="resnet9")


def resnet18(
    input_shape: tuple[int, int, int], num_classes: int, classifier_activation: str = "softmax"
) -> keras.Model:
    """Builds the ResNet-18 of He et al. 2016, table 1; see `resnet50` for its two stems.

    With 3 channels, the large stem and 1000 classes it has 11,689,512 weights that are trained.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of outputs.
        classifier_activation: Activation of the outputs.

    Returns:
        An uncompiled model with a float32 output of shape `(batch, num_classes)`.
    """
    return _resnet("resnet18", input_shape, num_classes, classifier_activation, (2, 2, 2, 2), 1)


def resnet50(
    input_shape: tuple[int, int, int], num_classes: int, classifier_activation: str = "softmax"
) -> keras.Model:
    """Builds the ResNet-50 of He et al. 2016, table 1, in version 1.5.

    Version 1.5 shrinks the images in the 3x3 convolution of a block, not in the 1x1 before it. Each
    block begins as the identity (Goyal et al. 2017, section 5.1). Images whose shorter side has up
    to 64 pixels are not shrunk by the stem, a 3x3 convolution (He et al. 2016, section 4.2); others
    by a 7x7 convolution and max pooling. With 3 channels, the large stem and 1000 classes it has
    25,557,032 weights that are trained.

    Args:
        input_shape: `(height, width, channels)`.
        num_classes: Number of outputs.
        classifier_activation: Activation of the outputs.

    Returns:
        An uncompiled model with a float32 output of shape `(batch, num_classes)`.
    """
    return _resnet("resnet50", input_shape, num_classes, classifier_activation, (3, 4, 6, 3), 4)


def _resnet(
    name: str,
    input_shape: tuple[int, int, int],
    num_classes: int,
    classifier_activation: str,
    blocks: Sequence[int],
    expansion: int,
) -> keras.Model:
    images = keras.Input(input_shape)
    if min(input_shape[:2]) <= _SMALL_IMAGE:
        x = _activated(_convolved(images, 64, 3, "stem"))
    else:
        x = _activated(_convolved(images, 64, 7, "stem", strides=2))
        x = layers.MaxPooling2D(3, strides=2, padding="same")(x)
    for stage, count in enumerate(blocks, start=1):
        for block in range(1, count + 1):
            strides = 2 if stage > 1 and block == 1 else 1
            width, label = 32 * 2**stage, f"stage{stage}_block{block}"
            x = _residual(x, width, expansion, strides, label)
    x = layers.GlobalAveragePooling2D(dtype="float32")(x)
    outputs = layers.Dense(
        num_classes, activation=classifier_activation, dtype="float32", name="head"
    )(x)
    return keras.Model(images, outputs, name=name)


def _residual(
    x: keras.KerasTensor, width: int, expansion: int, strides: int, name: str
) -> keras.KerasTensor:
    """Adds a block of two convolutions, or of three if it is a bottleneck."""
    out = width * expansion
    shortcut = x
    if strides > 1 or x.shape[-1] != out:
        shortcut = _convolved(x, out, 1, f"{name}_shortcut", strides=strides)
    if expansion == 1:
        inner = _activated(_convolved(x, width, 3, f"{name}_1", strides=strides))
        inner = _convolved(inner, out, 3, f"{name}_2", gamma="zeros")
    else:
        inner = _activated(_convolved(x, width, 1, f"{name}_1"))
        inner = _activated(_convolved(inner, width, 3, f"{name}_2", strides=strides))
        inner = _convolved(inner, out, 1, f"{name}_3", gamma="zeros")
    return _activated(layers.Add()([inner, shortcut]))


def _convolved(
    x: keras.KerasTensor, filters: int, size: int, name: str, strides: int = 1, gamma: str = "ones"
) -> keras.KerasTensor:
    """Adds a convolution and its batch normalisation, which is called `NAME_norm`."""
    x = layers.Conv2D(
        filters,
        size,
        strides,
        "same",
        use_bias=False,
        kernel_initializer="he_normal",
        name=name,
    )(x)
    return layers.BatchNormalization(
        momentum=_MOMENTUM, epsilon=_EPSILON, gamma_initializer=gamma, name=f"{name}_norm"
    )(x)


def _activated(x: keras.KerasTensor) -> keras.KerasTensor:
    return layers.Activation("relu")(x)
