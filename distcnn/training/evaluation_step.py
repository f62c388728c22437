"""The evaluation step: the metrics over all replicas, every image once."""

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.data.pixels import PixelRange, scale_pixels
from distcnn.engine.shard import Shard
from distcnn.engine.step import StepEngine
from distcnn.inference.views import Views
from distcnn.runtime.keras_steps import has_own_test_step
from distcnn.training.objective import Objective
from distcnn.training.step import Batch


class EvaluationStep:
    """Computes a classifier's loss and metrics over all replicas, counting every image once.

    Args:
        model: The built and compiled classifier.
        engine: Computes the step on each replica.
        objective: What the classifier is compiled with.
        pixels: Range of the pixels that the classifier expects.
        views: What the outputs for an image are averaged over.
    """

    def __init__(
        self,
        model: keras.Model,
        engine: StepEngine,
        objective: Objective,
        pixels: PixelRange,
        views: Views,
    ) -> None:
        self._model = model
        self._engine = engine
        self._backend = engine.backend
        self._objective = objective
        self._pixels = pixels
        self._views = views
        # As in the training step: Keras keeps AutoGraph out of the layers of the classifier.
        self._add = tf.function(self._add_batch, autograph=False, reduce_retracing=True)
        self._outputs = tf.function(self._outputs_of, autograph=False, reduce_retracing=True)

    def evaluate(self, batches: tf.data.Dataset, steps: int) -> dict[str, Any]:
        """Evaluates on all processes together.

        Args:
            batches: Shards as `Batch`, with weight 1 for each image, or 0 for a placeholder.
            steps: Number of steps, the same in every process; each replica computes one shard in
                a step, or all that virtual workers give it.

        Returns:
            The loss and the metrics that the classifier is compiled with, over all images.
        """
        self._engine.metrics.reset(self._model)
        iterator = self._backend.iterate(batches)
        for _ in range(steps):
            self._add(iterator)
        results = self._engine.metrics.results(self._model)
        self._engine.metrics.reset(self._model)
        return results

    def predict(self, batches: tf.data.Dataset) -> np.ndarray:
        """Returns the classifier's outputs for batches of stored pixels, in this process alone."""
        return np.concatenate([self._outputs(images).numpy() for images in batches])

    def scaled(self, images: tf.Tensor) -> tf.Tensor:
        """Maps stored pixels to float32 in the range that the classifier expects."""
        return scale_pixels(images, self._pixels)

    def _outputs_of(self, images: tf.Tensor) -> tf.Tensor:
        scaled = self.scaled(images)
        with self._engine.fast_form(self._model):
            return self._classify(scaled)

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        return self._views.mean(self._compute, images)

    def _compute(self, images: tf.Tensor) -> tf.Tensor:
        return tf.cast(self._model(images, training=False), tf.float32)

    def _add_batch(self, iterator: Any) -> None:
        virtual = self._engine.virtual
        with self._engine.installed():
            shards = [iterator.get_next() for _ in range(virtual.per_replica if virtual else 1)]
            self._backend.run(self._in_replica, shards)

    def _in_replica(self, shards: Sequence[Batch]) -> tf.Tensor:
        virtual, parts = self._engine.virtual, []
        rows = [tf.math.count_nonzero(weights, dtype=tf.int32) for _, _, weights in shards]
        counts = self._objective.is_own or has_own_test_step(self._model)
        total = self._backend.reduce_sum([tf.add_n(rows)])[0] if counts else None
        for position, (images, labels, _) in enumerate(shards):
            own = rows[position]
            index = virtual.index(position) if virtual else None
            shard = Shard(own, own if total is None else total, may_be_empty=True, index=index)
            parts.append(((self.scaled(images), self._objective.targets(labels)), shard))
        self._engine.evaluate(self._model, parts, self._classify)
        return tf.add_n(rows)
