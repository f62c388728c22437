"""The evaluation step: loss and accuracy over all replicas, every image once."""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.data.pixels import PixelRange, scale_pixels
from distcnn.distribute.base import Backend
from distcnn.inference.flip import mean_over_flip
from distcnn.training.objective import Objective
from distcnn.training.step import Batch


class EvaluationStep:
    """Sums a classifier's losses and hits over all replicas, counting every image once.

    Args:
        network: The built classifier, or its fast form.
        backend: Runs the replicas.
        objective: Gives the loss and the hit of each image.
        pixels: Range of the pixels that the classifier expects.
        test_flip: Whether to average the outputs for each image and its mirror image.
    """

    def __init__(
        self,
        network: keras.Model,
        backend: Backend,
        objective: Objective,
        pixels: PixelRange,
        *,
        test_flip: bool = False,
    ) -> None:
        self._network = network
        self._backend = backend
        self._objective = objective
        self._pixels = pixels
        self._test_flip = test_flip
        # As in the training step: Keras keeps AutoGraph out of the layers of the classifier.
        self._sums = tf.function(self._sums_of, autograph=False, reduce_retracing=True)
        self._outputs = tf.function(self._outputs_of, autograph=False, reduce_retracing=True)

    def evaluate(self, batches: tf.data.Dataset, steps: int) -> dict[str, float]:
        """Evaluates on all processes together.

        Args:
            batches: Shards as `Batch`, with weight 1 for each image, or 0 for a placeholder.
            steps: Number of shards per replica, the same in every process.

        Returns:
            Loss and accuracy over all images.
        """
        totals = np.zeros(3)
        iterator = self._backend.iterate(batches)
        for _ in range(steps):
            totals += self._sums(iterator).numpy()
        loss, correct, images = self._backend.sum(totals)
        return {"loss": float(loss / images), "accuracy": float(correct / images)}

    def predict(self, batches: tf.data.Dataset) -> np.ndarray:
        """Returns the classifier's outputs for batches of stored pixels, in this process alone."""
        return np.concatenate([self._outputs(images).numpy() for images in batches])

    def scaled(self, images: tf.Tensor) -> tf.Tensor:
        """Maps stored pixels to float32 in the range that the classifier expects."""
        return scale_pixels(images, self._pixels)

    def _outputs_of(self, images: tf.Tensor) -> tf.Tensor:
        scaled = self.scaled(images)
        return mean_over_flip(self._classify, scaled) if self._test_flip else self._classify(scaled)

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._network(images, training=False), tf.float32)

    def _sums_of(self, iterator: Any) -> tf.Tensor:
        return tf.add_n(self._backend.run(self._in_replica, iterator.get_next()))

    def _in_replica(self, shard: Batch) -> tf.Tensor:
        images, labels, weights = shard
        outputs = self._outputs_of(images)
        # Penalties of regularisers count as in training, and as in Keras' evaluate.
        penalty = [tf.cast(loss, tf.float32) for loss in self._network.losses]
        losses = self._objective.losses(labels, outputs) + sum(penalty, tf.constant(0.0))
        hits = self._objective.hits(labels, outputs)
        parts = [weights * losses, weights * hits, weights]
        return tf.stack([tf.reduce_sum(tf.cast(part, tf.float64)) for part in parts])
