"""How fast a pipeline delivers when nothing is computed."""

import time

import tensorflow as tf

_TOGETHER = 8
"""Batches that are read between two looks at the clock."""


class InputReader:
    """Reads batches inside a graph, as a training step does.

    Args:
        dataset: Data set whose elements begin with a batch of images; it is repeated.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._batches = iter(dataset.repeat())
        self._read = tf.function(self._read_together)

    def read(self, seconds: float) -> tuple[float, float]:
        """Reads for some time.

        Args:
            seconds: How long, at least.

        Returns:
            Batches a second and images a second.
        """
        # What was prefetched while others had their turn does not count.
        for _ in range(2):
            self._read()
        batches, images, start = 0, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            images += int(self._read())
            batches += _TOGETHER
        return batches / elapsed, images / elapsed

    def _read_together(self) -> tf.Tensor:
        images = tf.constant(0)
        for _ in range(_TOGETHER):
            with tf.control_dependencies([images]):
                images += tf.shape(self._batches.get_next()[0])[0]
        return images
