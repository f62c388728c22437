"""Adapts a model's layers to replicas: different dropout on each, batch statistics over all."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import keras
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.runtime.keras_internals import (
    all_layers,
    batch_moments,
    normalised_axes,
    replace_batch_moments,
)

_SPREAD = 0x9E3779B1
"""An odd number near 2**32 / the golden ratio, whose multiples are spread over all seeds."""


def seed_of(seed: Any, number: Any) -> tf.Tensor:
    """Returns the own seed of a replica, or of a shard; number 0 keeps the one it is given.

    Args:
        seed: Integer tensor of shape `(2,)`, the same on all replicas.
        number: Number of the replica or shard: an integer or an int32 scalar.
    """
    seed = tf.convert_to_tensor(seed)
    return seed + tf.cast(number, seed.dtype) * tf.constant([_SPREAD, 0], seed.dtype)


def layers_to_synchronise(
    model: keras.Model, backend: Backend, *, every_layer: bool
) -> list[keras.layers.BatchNormalization]:
    """Returns the layers that normalise over the images of all replicas.

    Args:
        model: Built model.
        backend: Runs the replicas.
        every_layer: Whether all do, not only those built with `synchronized=True`.
    """
    return [
        layer
        for layer in all_layers(model)
        if isinstance(layer, keras.layers.BatchNormalization)
        and (every_layer or layer.synchronized)
        and backend.replicas > 1
    ]


class SynchronisedBatchNorm:
    """Batch normalisation over the images of all replicas.

    Attributes:
        layers: The layers that are synchronised.

    Args:
        model: Built model; its layers are changed in place.
        backend: Sums over the replicas.
        every_layer: Whether to synchronise all layers, not only those built with
            `synchronized=True`.
    """

    def __init__(self, model: keras.Model, backend: Backend, *, every_layer: bool) -> None:
        # The replicas of one process are traced in threads that take turns at every reduction.
        self._of_replica = threading.local()
        self._backend = backend
        self.layers = layers_to_synchronise(model, backend, every_layer=every_layer)
        for layer in self.layers:
            replace_batch_moments(layer, self._moments_of(layer))

    @property
    def counts(self) -> tf.Tensor:
        """1 if this replica's images count, 0 for the placeholder of an empty shard; a scalar.

        The training step sets it on each replica before the model is called.
        """
        return self._of_replica.counts

    @counts.setter
    def counts(self, counts: tf.Tensor) -> None:
        self._of_replica.counts = counts

    @contextlib.contextmanager
    def counting(self, counts: tf.Tensor, weight: tf.Tensor | None = None) -> Iterator[None]:
        """Sets `counts` in the context; outside, the layers use the rows that they are given.

        Args:
            counts: See `counts`.
            weight: Factor by which this replica's gradients are multiplied after the backward pass,
                or None if its loss had that factor before.
        """
        self.counts = counts
        self._of_replica.weight = weight
        try:
            yield
        finally:
            del self._of_replica.counts, self._of_replica.weight

    def add_up(self, sums: tf.Tensor) -> tf.Tensor:
        """Returns the sum of a tensor over all replicas.

        The gradient is that of the sum of the replicas' losses, each with its factor.
        """
        weight = getattr(self._of_replica, "weight", None)
        if weight is None:
            return self._backend.sum_in_pass([sums])[0]

        @tf.custom_gradient
        def reduce(own: tf.Tensor) -> Any:
            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                factor = tf.cast(weight, upstream.dtype)
                total = self._backend.sum_in_pass([upstream * factor])[0]
                return tf.math.divide_no_nan(total, factor)

            return self._backend.sum_in_pass([own])[0], gradient

        return reduce(sums)

    def _moments_of(
        self, layer: keras.layers.BatchNormalization
    ) -> Callable[[tf.Tensor, Any], tuple[tf.Tensor, tf.Tensor]]:
        original = batch_moments(layer)

        def moments(inputs: tf.Tensor, mask: Any) -> tuple[tf.Tensor, tf.Tensor]:
            """Returns mean and variance of shape `(channels,)`, from a single reduction.

            The sums are taken around the moving mean, which is the same on all replicas, so that
            little precision is lost if the variance is small compared with the mean.
            """
            if not hasattr(self._of_replica, "counts"):
                return original(inputs, mask)
            if mask is not None:
                raise UsageError(
                    f"{layer.name} normalises masked inputs over all workers, which is not "
                    "supported; drop synchronised batch normalisation"
                )
            axes = normalised_axes(layer)
            channels = [inputs.shape[layer.axis]]
            centre = tf.stop_gradient(tf.cast(layer.moving_mean.value, inputs.dtype))
            shape = [1] * len(inputs.shape)
            shape[layer.axis] = channels[0]
            centred = inputs - tf.reshape(centre, shape)
            weight = tf.cast(self.counts, inputs.dtype)
            images = tf.cast(tf.size(inputs), inputs.dtype) / channels[0] * weight
            sums = tf.concat(
                [
                    tf.reduce_sum(centred, axes) * weight,
                    tf.reduce_sum(tf.square(centred), axes) * weight,
                    tf.reshape(images, [1]),
                ],
                axis=0,
            )
            total = self.add_up(sums)
            total_sum, total_square, count = tf.split(total, [channels[0], channels[0], 1])
            mean = total_sum / count
            variance = tf.maximum(total_square / count - tf.square(mean), 0.0)
            return mean + centre, variance

        return moments
