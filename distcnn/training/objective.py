"""What a run minimises and reports: what the model is compiled with, by its owner or by distcnn."""

from dataclasses import dataclass
from typing import Any, Literal

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Objective:
    """The loss and the metrics of a run.

    A model that its owner has compiled keeps its loss, metrics and optimizer. Any other one is
    compiled with categorical cross-entropy and accuracy. `distcnn evaluate` computes the same mean
    cross-entropy from probabilities (`distcnn.inference.evaluation.Evaluation.loss`).

    Attributes:
        logits: Whether the classifier returns logits rather than probabilities.
        is_own: Whether the model's owner has compiled it.
        labels: What the loss takes: one-hot rows, or the index of each image's class.
    """

    logits: bool
    is_own: bool = False
    labels: Literal["one_hot", "index"] = "one_hot"

    def targets(self, labels: tf.Tensor) -> tf.Tensor:
        """Returns labels as the loss takes them.

        Args:
            labels: float32 tensor of shape `(count, classes)`, whose rows sum to 1.

        Returns:
            The same, or an int64 tensor of shape `(count,)`.
        """
        return labels if self.labels == "one_hot" else tf.argmax(labels, 1)

    def compile_arguments(self) -> dict[str, Any]:
        """Returns the loss and the metric for `keras.Model.compile`, for one-hot labels."""
        return {
            "loss": keras.losses.CategoricalCrossentropy(from_logits=self.logits),
            "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
        }
