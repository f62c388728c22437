"""Measures the speed and the peak memory of training at one batch size, within a limit."""

import os
import sys
import threading
import time
from typing import Any, NoReturn

import numpy as np

from distcnn.benchmarking.process_groups import OUT_OF_MEMORY
from distcnn.benchmarking.step_timing import peak_memory_mb
from distcnn.training.loop import run_first_steps
from distcnn.training.setup import TrainingSetup

_POLL_SECONDS = 0.02
_LEAST_STEPS = 3


def measure_batch(setup: TrainingSetup, *, limit_mb: float, seconds: float) -> dict[str, Any]:
    """Trains for a few seconds, and ends this process if it takes more memory than allowed.

    Args:
        setup: The run, of at least `_LEAST_STEPS` steps.
        limit_mb: The most memory of a worker in MB: of its GPU if it has one, else of its process.
        seconds: How long to train after the first step, which compiles.

    Returns:
        `images_per_second` over all workers, `peak_memory_mb` of the worker that takes most,
        `training_images`, and whether workers have GPUs (`gpu`).
    """
    on_gpu = setup.context.hardware.gpu is not None
    if not on_gpu:
        threading.Thread(target=_watch, args=(limit_mb,), daemon=True).start()
    training, sampler, backend = setup.training, setup.sampler, setup.backend
    start, first = 0.0, 0
    for step in run_first_steps(setup, setup.total_steps):
        training.wait()
        if step == 1:
            start, first = time.perf_counter(), step
        elapsed = time.perf_counter() - start
        if step >= _LEAST_STEPS and not backend.any_process(elapsed < seconds):
            break
    images = sampler.images_before(training.step) - sampler.images_before(first)
    peak = float(backend.gather(np.array([peak_memory_mb()])).max())
    if peak > limit_mb:  # of the GPU, or in an instant between two looks
        _refuse(peak, limit_mb)
    return {
        "images_per_second": images / elapsed,
        "peak_memory_mb": peak,
        "training_images": sampler.examples,
        "gpu": on_gpu,
    }


def _watch(limit_mb: float) -> None:
    page = os.sysconf("SC_PAGE_SIZE")
    with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 (kept open)
        while True:
            file.seek(0)
            resident = int(file.read().split()[1]) * page / 1e6
            if resident > limit_mb:
                _refuse(resident, limit_mb)
            time.sleep(_POLL_SECONDS)


def _refuse(used_mb: float, limit_mb: float) -> NoReturn:
    sys.stderr.write(f"error: {OUT_OF_MEMORY}a worker took {used_mb:.0f} MB of {limit_mb:.0f} MB\n")
    sys.stderr.flush()
    os._exit(1)  # at once, whatever TensorFlow is doing
