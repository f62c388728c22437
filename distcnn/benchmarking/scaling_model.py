"""A model of scaling: the step time by batch size and number of workers.

A worker takes `fixed + b * per_image` for a batch of b images. A ring allreduce of n bytes among N
workers takes `2 (N - 1) latency + 2 (N - 1) / N * n / bandwidth` (Patarasuk and Yuan 2009,
"Bandwidth optimal all-reduce algorithms for clusters of workstations"). If gradients are reduced in
buckets, the reduction starts when the first one is ready: only what is left of it at the end of the
backward pass adds to the step, and at least the last bucket.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ScalingModel:
    """The parameters of the model.

    Attributes:
        fixed_ms: The part of the step time that does not depend on the batch.
        per_image_ms: Step time that each image adds.
        latency_ms: Latency of one hop of the ring.
        bytes_per_ms: Bandwidth of one link.
        bytes_per_step: Bytes that a step reduces.
        overlap: Fraction of the computing that is left when the first bucket is ready, in [0, 1].
        last_bytes: Bytes of the last bucket; all of them if there is no overlap.
    """

    fixed_ms: float
    per_image_ms: float
    latency_ms: float
    bytes_per_ms: float
    bytes_per_step: int
    overlap: float = 0.0
    last_bytes: int = 0

    def compute_ms(self, batch: float) -> float:
        """Returns the time that a worker takes to compute `batch` images."""
        return self.fixed_ms + batch * self.per_image_ms

    def reduce_ms(self, workers: int) -> float:
        """Returns the time that `workers` workers take to reduce the gradients of a step."""
        return self._ring_ms(workers, self.bytes_per_step)

    def exposed_ms(self, workers: int, batch: float) -> float:
        """Returns the part of that time in which nothing is computed."""
        hidden = self.overlap * self.compute_ms(batch)
        if not hidden:
            return self.reduce_ms(workers)
        return max(self.reduce_ms(workers) - hidden, self._ring_ms(workers, self.last_bytes))

    def step_ms(self, workers: int, batch: float) -> float:
        """Returns the time of a step on `workers` workers with `batch` images each."""
        return self.compute_ms(batch) + self.exposed_ms(workers, batch)

    def _ring_ms(self, workers: int, size: int) -> float:
        hops = 2 * (workers - 1)
        return hops * self.latency_ms + hops / workers * size / self.bytes_per_ms

    def efficiency(self, workers: int, batch: float) -> float:
        """Returns the throughput per worker of `workers` workers, relative to a single worker."""
        return self.compute_ms(batch) / self.step_ms(workers, batch)


def fit_scaling_model(
    step_ms: Mapping[int, float],
    reduction_ms: Mapping[int, float],
    workers: int,
    buckets: Sequence[int],
    overlap: float,
) -> ScalingModel:
    """Fits the model to measured times, by least squares on relative errors.

    Args:
        step_ms: Step time of one worker by batch size, for at least two sizes.
        reduction_ms: Time of a reduction by its size in bytes, for at least two sizes.
        workers: Number of workers that reduced, at least 2.
        buckets: Bytes of each bucket of gradients that a step reduces.
        overlap: Fraction of the computing that is left when the first bucket is ready, in [0, 1].

    Returns:
        The model; none of its times is negative.
    """
    fixed, per_image = _line(step_ms)
    start, per_byte = _line(reduction_ms)
    hops = 2 * (workers - 1)
    bandwidth = hops / workers / per_byte
    return ScalingModel(
        fixed, per_image, start / hops, bandwidth, sum(buckets), overlap, buckets[-1]
    )


def _line(points: Mapping[int, float]) -> tuple[float, float]:
    """Returns the intercept (at least 0) and the slope (above 0) of the best-fitting line."""
    x, y = np.array(list(points)), np.array(list(points.values()))
    design = np.stack([np.ones_like(x, float), x], axis=1) / y[:, None]
    (intercept, slope), *_ = np.linalg.lstsq(design, np.ones_like(y), rcond=None)
    if intercept < 0:
        weighted = x / y
        intercept, slope = 0.0, weighted.sum() / (weighted**2).sum()
    return float(intercept), max(float(slope), 1e-12)
