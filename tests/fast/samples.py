"""Models of several kinds, and what a step of one gives."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras import layers

IMAGES = np.random.default_rng(3).random((32, 12, 12, 3), dtype=np.float32)
LABELS = np.eye(4, dtype=np.float32)[np.arange(32) % 4]


def smooth(activation: str = "tanh", dropout: float = 0.0) -> keras.Model:
    """The article's order of layers, with a smooth activation."""
    stages: list[Any] = [keras.Input((12, 12, 3))]
    for width, pool in ((8, False), (16, True)):
        stages += [layers.Conv2D(width, 3, padding="same"), layers.Activation(activation)]
        if pool:
            stages.append(layers.MaxPooling2D(2))
        stages += [layers.Dropout(dropout), layers.BatchNormalization(momentum=0.9)]
    stages += [layers.Flatten(), layers.Dropout(dropout)]
    stages += [layers.Dense(12), layers.Activation(activation), layers.Dropout(dropout)]
    stages += [layers.BatchNormalization(momentum=0.9)]
    stages += [layers.Dense(4, dtype="float32"), layers.Activation("softmax", dtype="float32")]
    return keras.Sequential(stages)


def branched() -> keras.Model:
    """Functional model: residual branch, shared layer, activations in layers, unusual padding."""
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(8, 3, strides=2, padding="valid", activation="relu", use_bias=False)(inputs)
    shared = layers.Conv2D(8, 3, padding="same", dilation_rate=2, activation="tanh")
    x = layers.BatchNormalization(scale=False)(x)
    y = layers.ReLU()(layers.BatchNormalization(center=False)(shared(shared(x))))
    x = layers.BatchNormalization()(layers.Add()([x, y]))
    x = layers.BatchNormalization()(layers.DepthwiseConv2D(3, use_bias=False)(layers.ReLU(6.0)(x)))
    x = layers.MaxPooling2D(3, strides=2, padding="same")(layers.LeakyReLU()(x))
    x = keras.ops.concatenate([layers.GlobalAveragePooling2D()(x), layers.Flatten()(x)], axis=-1)
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def modern() -> keras.Model:
    """What newer networks have: smooth activations, layer normalisation, dense layers on images."""
    inputs = keras.Input((12, 12, 3))
    x = layers.LayerNormalization(epsilon=1e-6)(layers.Conv2D(8, 3, strides=2)(inputs))
    x = layers.Dense(8, use_bias=False)(layers.Activation("gelu")(layers.Dense(16)(x)))
    x = layers.Activation("silu")(layers.BatchNormalization()(x))
    x = layers.LayerNormalization(scale=False)(layers.Conv2D(8, 1, activation="hard_silu")(x))
    x = layers.LayerNormalization(center=False)(layers.Dense(8, activation="mish")(x))
    x = layers.LayerNormalization(axis=[1, 2])(x)
    x = layers.Dense(8, activation="gelu")(layers.Flatten()(x))
    return keras.Model(inputs, layers.Dense(4, activation="softmax", dtype="float32")(x))


def depthwise() -> keras.Model:
    """Convolutions with filters of their own for each channel."""
    inputs = keras.Input((13, 12, 3))
    x = layers.DepthwiseConv2D((3, 5), padding="same", activation="tanh")(inputs)
    x = layers.DepthwiseConv2D(3, strides=2, padding="same", use_bias=False)(x)
    x = layers.Conv2D(8, 1, activation="tanh")(layers.UpSampling2D()(x))
    x = layers.Conv2D(8, (4, 3), padding="same", groups=8)(x)
    x = layers.Conv2D(8, 2, padding="same", dilation_rate=(2, 1), groups=8)(x)
    y = layers.DepthwiseConv2D((2, 4), strides=2, padding="same")(x)
    x = layers.Conv2D(8, 2, strides=(1, 2), padding="same", groups=8)(x)
    x = layers.DepthwiseConv2D(2, padding="same", depth_multiplier=2, use_bias=False)(x)
    x = layers.UpSampling2D()(layers.BatchNormalization()(x))
    x = layers.DepthwiseConv2D((3, 4), strides=3, padding="valid", activation="tanh")(x)
    x = layers.DepthwiseConv2D(2, strides=3, padding="same")(x)
    x = layers.Concatenate()([layers.Flatten()(x), layers.Flatten()(y)])
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(x))


def known() -> keras.Model:
    """A well-known network with many branches."""
    net = keras.applications.MobileNetV3Small
    return net((32, 32, 3), weights=None, classes=4, include_preprocessing=False, dropout_rate=0)


def nested() -> keras.Model:
    """A Sequential model inside a functional one, with frozen normalisation."""
    frozen = layers.BatchNormalization()
    frozen.trainable = False
    inner = keras.Sequential(
        [
            keras.Input((12, 12, 3)),
            layers.Conv2D(6, 3, kernel_regularizer="l2", bias_regularizer="l1"),
            layers.ReLU(),
            frozen,
            layers.MaxPooling2D(),
        ]
    )
    inputs = keras.Input((12, 12, 3))
    flat = layers.Flatten()(inner(inputs))
    return keras.Model(inputs, layers.Dense(4, activation="softmax")(flat))


class Outcome:
    """Results of one training step and one inference pass of a model."""

    def __init__(self, model: keras.Model, computing: keras.Model) -> None:
        before = [variable.numpy() for variable in model.variables]
        images = tf.image.resize(IMAGES, model.input_shape[1:3])

        @tf.function
        def step() -> Any:
            with tf.GradientTape() as tape:
                outputs = computing(images, training=True)
                losses = keras.losses.categorical_crossentropy(LABELS, tf.cast(outputs, tf.float32))
                loss = tf.add_n([tf.reduce_mean(losses), *computing.losses])
            return outputs, loss, tape.gradient(loss, model.trainable_variables)

        self.outputs, self.loss, self.gradients = step()
        self.statistics = [v.numpy() for v in model.non_trainable_variables]
        for variable, value in zip(model.variables, before, strict=True):
            variable.assign(value)
        self.inference = computing(images, training=False)

    def distance(self, other: "Outcome") -> dict[str, float]:
        """Returns the largest difference of each kind, relative to the largest value."""
        pairs = {
            "outputs": [(self.outputs, other.outputs)],
            "loss": [(self.loss, other.loss)],
            "gradients": list(zip(self.gradients, other.gradients, strict=True)),
            "statistics": list(zip(self.statistics, other.statistics, strict=True)),
            "inference": [(self.inference, other.inference)],
        }
        return {name: max(difference(a, b) for a, b in both) for name, both in pairs.items()}


def difference(ours: Any, theirs: Any) -> float:
    a, b = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-3))
