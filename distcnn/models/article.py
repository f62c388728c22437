"""The article's CNN for CIFAR-10."""

import keras
from keras import layers


def article(
    input_shape: tuple[int, int, int],
    num_classes: int,
    dropout: float = 0.2,
    classifier_activation: str = "softmax",
) -> keras.Sequential:
    """Builds the article's network: four convolutions and two dense layers.

    Each stage is a convolution or dense layer, relu, optional max pooling, dropout and batch
    normalisation. The dense kernels have a maximum norm of 3 (Srivastava et al. 2014). For 32x32x3
    images and 10 classes, the network has 2,264,458 parameters, of which 2,263,114 are trainable.

    Args:
        input_shape: `(height, width, channels)`; height and width are halved twice.
        num_classes: Number of outputs.
        dropout: Fraction of the activations that each dropout layer drops.
        classifier_activation: Activation of the outputs.

    Returns:
        An uncompiled model with a float32 output of shape `(batch, num_classes)`.
    """
    stages: list[keras.Layer] = [keras.Input(input_shape)]
    for filters, pool in ((32, False), (64, True), (64, True), (128, False)):
        stages += [layers.Conv2D(filters, 3, padding="same"), layers.Activation("relu")]
        if pool:
            stages.append(layers.MaxPooling2D(2))
        stages += [layers.Dropout(dropout), layers.BatchNormalization()]
    stages += [layers.Flatten(), layers.Dropout(dropout)]
    for units in (256, 128):
        stages += [
            layers.Dense(units, kernel_constraint=keras.constraints.MaxNorm(3)),
            layers.Activation("relu"),
            layers.Dropout(dropout),
            layers.BatchNormalization(),
        ]
    stages += [
        layers.Dense(num_classes, dtype="float32"),
        layers.Activation(classifier_activation, dtype="float32"),
    ]
    return keras.Sequential(stages, name="article")
