"""What a run minimises and reports: the loss and the hit of each image.

Training, validation, the final test and the compiled model take their loss from here. The caller
weights and sums it over images and replicas. `distcnn evaluate` computes the same mean from
probabilities (`distcnn.inference.evaluation.Evaluation.loss`).
"""

from dataclasses import dataclass
from typing import Any

import keras
import tensorflow as tf


@dataclass(frozen=True)
class Objective:
    """Categorical cross-entropy.

    Attributes:
        logits: Whether the classifier returns logits rather than probabilities.
    """

    logits: bool

    def losses(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns the loss of each image.

        Args:
            labels: float32 tensor of shape `(count, classes)`, whose rows sum to 1.
            outputs: float32 tensor of shape `(count, classes)`, the classifier's outputs.

        Returns:
            float32 tensor of shape `(count,)`, in nats.
        """
        return keras.losses.categorical_crossentropy(labels, outputs, from_logits=self.logits)

    def hits(self, labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        """Returns 1.0 for each image whose most probable class is the label's, else 0.0.

        Args:
            labels: As for `losses`.
            outputs: As for `losses`.

        Returns:
            float32 tensor of shape `(count,)`.
        """
        return tf.cast(tf.equal(tf.argmax(labels, 1), tf.argmax(outputs, 1)), tf.float32)

    def compile_arguments(self) -> dict[str, Any]:
        """Returns the loss and the metric for `keras.Model.compile`, for one-hot labels."""
        return {
            "loss": keras.losses.CategoricalCrossentropy(from_logits=self.logits),
            "metrics": [keras.metrics.CategoricalAccuracy(name="accuracy")],
        }
