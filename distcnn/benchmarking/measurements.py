"""The kinds of measurement that a plan can contain."""

from dataclasses import asdict
from typing import Any

import keras

from distcnn.benchmarking.floor import measure_floor
from distcnn.benchmarking.flops import peak_flops
from distcnn.benchmarking.plain_keras import compare_with_plain
from distcnn.benchmarking.progress import Budget
from distcnn.benchmarking.step_timing import (
    measure_overlap,
    measure_steps,
    reduction_times,
    step_times_by_batch,
)
from distcnn.config import PrecisionConfig
from distcnn.runtime.precision import resolve_precision
from distcnn.storage.environment import describe_environment
from distcnn.training.setup import TrainingSetup

_REDUCTION_BYTES = [2**12, 2**18, 2**20, 2**22, 2**24]


def steps(setup: TrainingSetup, *, count: int, warmup: int) -> dict[str, Any]:
    """Times training steps (see `measure_steps`) and describes the run and the machine."""
    hardware, resolved = setup.context.hardware, setup.resolved()
    return measure_steps(setup, count, warmup) | {
        "peak_gflops": peak_flops(keras.config.dtype_policy().compute_dtype) / 1e9,
        "fastest_policy": resolve_precision(PrecisionConfig(), hardware).policy,
        "resolved": resolved,
        "environment": describe_environment(hardware.gpu, resolved),
    }


def comparison(setup: TrainingSetup, *, repeats: int, budget: list[float]) -> list[dict[str, Any]]:
    """Compares distcnn with the plain Keras script; see `compare_with_plain`."""
    return compare_with_plain(setup, repeats, _budget(budget))


def floor(setup: TrainingSetup, *, repeats: int, budget: list[float]) -> dict[str, Any]:
    """Times the step and its convolutions and products alone; see `measure_floor`."""
    return asdict(measure_floor(setup, repeats, _budget(budget)))


def scaling(
    setup: TrainingSetup, *, batches: list[int], repeats: int, replicas: int
) -> dict[str, Any]:
    """Measures step times by batch size and reduction times by size, to fit a `ScalingModel`.

    Args:
        setup: The run.
        batches: Sizes of the global batch.
        repeats: Number of executions to time of each.
        replicas: Number of replicas to predict.
    """
    measured: dict[str, Any] = {"step_ms": step_times_by_batch(setup, batches, repeats)}
    if setup.backend.replicas > 1:
        measured["reduction_ms"] = reduction_times(setup.backend, _REDUCTION_BYTES, repeats)
        measured["buckets"], measured["overlap"] = measure_overlap(setup, repeats, replicas)
    return measured


def _budget(entry: list[float]) -> Budget:
    """Returns a budget that began in another process: its seconds and its start."""
    seconds, start = entry
    return Budget(seconds, start=start)
