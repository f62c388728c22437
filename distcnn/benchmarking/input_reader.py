"""The throughput of an input pipeline on its own, with no computation beside it."""

import time

import tensorflow as tf

_BATCHES_PER_CALL = 8


class InputReader:
    """Reads batches inside a graph, as a training step does.

    Args:
        dataset: Data set whose elements begin with a batch of images; it is repeated.
    """

    def __init__(self, dataset: tf.data.Dataset) -> None:
        self._batches = iter(dataset.repeat())
        self._read = tf.function(self._read_batches)

    def read(self, seconds: float) -> tuple[float, float]:
        """Reads for a given time.

        Args:
            seconds: Shortest time to read for.

        Returns:
            Batches per second and images per second.
        """
        # Batches that were prefetched before the clock starts must not count.
        for _ in range(2):
            self._read()
        batches, images, start = 0, 0, time.perf_counter()
        while (elapsed := time.perf_counter() - start) < seconds:
            images += int(self._read())
            batches += _BATCHES_PER_CALL
        return batches / elapsed, images / elapsed

    def _read_batches(self) -> tf.Tensor:
        images = tf.constant(0)
        for _ in range(_BATCHES_PER_CALL):
            with tf.control_dependencies([images]):
                images += tf.shape(self._batches.get_next()[0])[0]
        return images
