"""What a run minimises and reports: what the model is compiled with, by its owner or by distcnn."""

from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf

from distcnn.config.task import Task
from distcnn.training.task_metrics import F1, MeanAveragePrecision, ScaledSquaredError


@dataclass(frozen=True)
class Objective:
    """The loss and the metrics of a run.

    A model that its owner has compiled keeps its loss, metrics and optimizer. Any other one is
    compiled with what fits its task: categorical cross-entropy and accuracy; binary cross-entropy,
    mean average precision and F1; or the squared error, in units of the variance of the training
    labels, and the mean squared and absolute error. `distcnn evaluate` computes the same mean
    cross-entropy from probabilities (`distcnn.inference.evaluation.Evaluation.loss`).

    Attributes:
        logits: Whether the classifier returns logits rather than probabilities.
        is_own: Whether the model's owner has compiled it.
        labels: What the loss takes: one-hot rows, or the index of each image's class.
        task: What the labels are.
        scale: Standard deviations of the training labels that are numbers.
        class_weights: Weight of each class in the training loss, or None if they are all 1.
    """

    logits: bool
    is_own: bool = False
    labels: Literal["one_hot", "index"] = "one_hot"
    task: Task = "classification"
    scale: tuple[float, ...] = ()
    class_weights: tuple[float, ...] | None = None

    def targets(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns labels as the loss takes them.

        Args:
            labels: float32 tensor of shape `(count, classes)`, whose rows sum to 1 if they are
                classes.

        Returns:
            The same, or an int64 tensor of shape `(count,)`.
        """
        return labels if self.labels == "one_hot" else tf.argmax(labels, 1)

    def training_data(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, ...]:
        """Returns a shard of training images as Keras' steps take it.

        Args:
            images: The scaled images.
            labels: As for `targets`.

        Returns:
            Images and targets; and if classes have weights, the weight of each image, float32 of
            shape `(count,)`: the mean over its classes, where labels are mixed.
        """
        targets = self.targets(labels)
        if self.class_weights is None:
            return images, targets
        return images, targets, tf.linalg.matvec(labels, tf.constant(self.class_weights))

    def compile_arguments(self, classes: int) -> dict[str, Any]:
        """Returns the loss and the metrics for `keras.Model.compile`, for rows of labels.

        Args:
            classes: Number of classes, or of numbers.
        """
        if self.task == "multilabel":
            return {
                "loss": keras.losses.BinaryCrossentropy(from_logits=self.logits),
                "metrics": [MeanAveragePrecision(classes, self.logits), F1(self.logits)],
            }
        if self.task == "regression":
            return {"loss": ScaledSquaredError(self.scale), "metrics": _errors()}
        return self.plain_compile_arguments()

    def plain_compile_arguments(self) -> dict[str, Any]:
        """Returns a loss and metrics of Keras' own, so that plain Keras can load the model."""
        if self.task == "multilabel":
            return {"loss": keras.losses.BinaryCrossentropy(from_logits=self.logits)}
        if self.task == "regression":
            return {"loss": keras.losses.MeanSquaredError(), "metrics": _errors()[1:]}
        return {
            "loss": keras.losses.CategoricalCrossentropy(from_logits=self.logits),
            "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
        }


def _errors() -> list[keras.Metric]:
    return [
        keras.metrics.MeanSquaredError(name="mse"),
        keras.metrics.MeanAbsoluteError(name="mae"),
    ]
