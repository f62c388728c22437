"""Small classifiers of a user's own, for `--model.factory tests.tiny:NAME`."""

import os
import time
from typing import Any

import keras
import tensorflow as tf
from keras import layers

from distcnn.runtime.cluster import find_cluster


def tiny(
    input_shape: tuple[int, int, int],
    num_classes: int,
    dropout: float = 0.3,
    activation: str = "relu",
    norms: int = 1,
) -> keras.Model:
    """A functional model with batch normalisation and dropout."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=4, padding="same")(inputs)
    x = layers.BatchNormalization()(x)
    x = layers.Activation(activation)(x)
    x = layers.Dropout(dropout)(layers.Flatten()(x))
    for _ in range(norms - 1):
        x = layers.BatchNormalization()(layers.Dense(16, activation=activation)(x))
    outputs = layers.Dense(num_classes, activation="softmax", dtype="float32")(x)
    return keras.Model(inputs, outputs, name="tiny")


def wide(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model whose first kernel has more elements than the rows that it is trained with."""
    inputs = keras.Input(input_shape)
    x = layers.Dense(256, activation="tanh")(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))


def scaled(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that begins with constants that Keras counts among its weights."""
    inputs = keras.Input(input_shape)
    outputs = tiny(input_shape, num_classes)(layers.Normalization()(inputs))
    return keras.Model(inputs, outputs, name="scaled")


def fixed_input() -> keras.Model:
    """A model that says for itself what it takes: 8x8 grey images, 10 classes, logits."""
    return keras.Sequential(
        [keras.Input((8, 8, 1)), layers.Flatten(), layers.Dense(10, dtype="float32")]
    )


def exploding(input_shape: tuple[int, int, int], num_classes: int, at: int) -> keras.Model:
    """A model whose loss is NaN from a training step on."""

    class Counter(layers.Layer):
        def build(self, shape: Any) -> None:
            self.count = self.add_weight(shape=(), initializer="zeros", trainable=False)

        def call(self, x: Any, training: bool = False) -> Any:
            if training:
                self.count.assign_add(1.0)
            return x + keras.ops.where(self.count >= at, float("nan"), 0.0)

    inputs = keras.Input(input_shape)
    x = Counter()(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))


def not_a_model() -> str:
    """Returns something that is not a model."""
    return "model"


def wrong_width(input_shape: tuple[int, int, int]) -> keras.Model:
    """A model with the wrong number of outputs."""
    return keras.Sequential([keras.Input(input_shape), layers.Flatten(), layers.Dense(7)])


def named_output(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that returns its output by name."""
    inputs = keras.Input(input_shape)
    outputs = layers.Dense(num_classes, activation="softmax")(layers.Flatten()(inputs))
    return keras.Model(inputs, {"digit": outputs})


class Subclassed(keras.Model):
    """A model that has weights, but does not know its input shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = layers.Dense(10)
        self.layer.build((None, 4))
        self.built = True

    def call(self, x: Any) -> Any:
        return self.layer(x)


class Preprocessed(keras.Model):
    """A model as KerasHub returns it, with pixels scaled outside of it."""

    preprocessor = layers.Rescaling(1 / 255)


Preprocessed.__module__ = "keras_hub.src.models.image_classifier"


def preprocessed(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model whose preprocessor only its own fit and predict would call."""
    body = plain(input_shape, num_classes)
    return Preprocessed(body.input, body.output)


class Unsaved(layers.Layer):
    """A layer that Keras cannot save."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def call(self, x: Any) -> Any:
        return self.function(x)


def unsaved(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that trains but cannot be saved."""
    inputs = keras.Input(input_shape)
    x = Unsaved(keras.ops.abs)(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(num_classes)(x))


def with_lambda(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that can be saved but not loaded."""
    inputs = keras.Input(input_shape)
    x = layers.Lambda(lambda x: 2 * x)(layers.Flatten()(inputs))
    return keras.Model(inputs, layers.Dense(num_classes)(x))


class Seen(keras.callbacks.Callback):
    """A user's callback that notes what it sees."""

    log: list[tuple[Any, ...]] = []  # noqa: RUF012 (shared with the test on purpose)

    def on_train_begin(self, logs: Any = None) -> None:
        self.log.append(("begin", self.model.name, self.params["epochs"], self.params["steps"]))

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.log.append(("batch", batch, sorted(logs)))

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.log.append(("epoch", epoch, sorted(logs)))

    def on_train_end(self, logs: Any = None) -> None:
        self.log.append(("end",))


def plain(
    input_shape: tuple[int, int, int], num_classes: int, classifier_activation: str = "softmax"
) -> keras.Model:
    """A model whose step is the same function of a batch, however that is divided."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="tanh")(inputs)
    x = layers.AveragePooling2D(4)(x)
    x = layers.Dense(24, activation="gelu", kernel_regularizer="l2")(layers.Flatten()(x))
    outputs = layers.Dense(num_classes, activation=classifier_activation, dtype="float32")(x)
    return keras.Model(inputs, outputs, name="plain")


def pointwise(
    input_shape: tuple[int, int, int], num_classes: int, dropout: float = 0.0
) -> keras.Model:
    """A model with 1 x 1 convolutions, with and without a bias."""
    inputs = keras.Input(input_shape)
    x = layers.Conv2D(8, 3, strides=2, padding="same", activation="tanh")(inputs)
    x = layers.Conv2D(32, 1, activation="tanh")(x)
    x = layers.Conv2D(16, 1, use_bias=False)(layers.Dropout(dropout)(x))
    x = layers.GlobalAveragePooling2D()(layers.Activation("tanh")(x))
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax", dtype="float32")(x))


def compiled(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that its owner has compiled, with a loss for indices that is summed."""
    model = plain(input_shape, num_classes)
    model.compile(
        keras.optimizers.RMSprop(0.001, clipnorm=0.5),
        keras.losses.SparseCategoricalCrossentropy(reduction="sum"),
        loss_weights=[0.02],
        metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(3, name="top3")],
    )
    return model


def without_loss(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A model that is compiled, but not for anything."""
    model = fixed_input()
    model.compile("adam")
    return model


class TwoSteps(keras.Model):
    """A model with steps of its own: a penalty on the outputs, and a second look at the metrics."""

    def train_step(self, data: Any) -> dict[str, Any]:
        images, labels = data
        with tf.GradientTape() as tape:
            outputs = self(images, training=True)
            loss = self.compute_loss(y=labels, y_pred=outputs)
            loss += 0.1 * keras.ops.mean(keras.ops.square(outputs))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        for metric in self.metrics:
            if metric.name == "loss":
                metric.update_state(loss)
            else:
                metric.update_state(labels, outputs)
        return {metric.name: metric.result() for metric in self.metrics}


def own_step(input_shape: tuple[int, int, int], num_classes: int) -> keras.Model:
    """A compiled model that overrides `train_step`."""
    body = plain(input_shape, num_classes)
    model = TwoSteps(body.input, body.output)
    model.compile(
        keras.optimizers.SGD(0.05),
        keras.losses.CategoricalFocalCrossentropy(),
        metrics=[keras.metrics.AUC(name="auc"), keras.metrics.F1Score("macro", name="f1")],
    )
    return model


class Unhurried(keras.callbacks.Callback):
    """A user's callback that leaves time to interrupt the run, if the environment asks for it."""

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if os.environ.get("UNHURRIED"):
            time.sleep(float(os.environ["UNHURRIED"]))


class FailsInRank1(keras.callbacks.Callback):
    """A user's callback that works in rank 0 only."""

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if find_cluster(os.environ).rank == 1:
            raise ValueError("the disk of this host is on fire")
