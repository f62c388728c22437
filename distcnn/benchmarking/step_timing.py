"""Times training steps: as they are, without input, and without the reduction, in turn."""

import contextlib
import gc
import resource
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.benchmarking.flops import training_flops
from distcnn.benchmarking.input_reader import InputReader
from distcnn.benchmarking.statistics import summarise
from distcnn.data.pipeline import training_dataset
from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.training.setup import TrainingSetup
from distcnn.training.step import TrainingStep

_READ_SECONDS = 2.0


class TimedSteps:
    """One way to train, timed execution by execution.

    Args:
        training: The step.
        batches: Iterator of the backend over batches.

    Attributes:
        first_seconds: What the first execution took, tracing and compilation included.
        seconds: Times of the steps that count, each of a full batch.
        total_seconds: Time of all executions since `reset`.
    """

    def __init__(self, training: TrainingStep, batches: Any) -> None:
        self._training = training
        self._batches = batches
        self.first_seconds = self._run()
        self.reset()

    def reset(self) -> None:
        """Begins to measure anew."""
        self.seconds: list[float] = []
        self.total_seconds = 0.0
        self._training.pop_input_wait()

    def repeat(self) -> None:
        """Does one execution and keeps its time, unless it ends an epoch with a smaller batch."""
        before = self._training.step
        elapsed = self._run()
        self.total_seconds += elapsed
        done = self._training.step - before
        if self._training.step_in_epoch and done == self._training.steps_per_execution:
            self.seconds.append(elapsed / done)

    def input_wait(self) -> float:
        """Returns the share of the time since `reset` that was spent waiting for input."""
        return min(self._training.pop_input_wait() / self.total_seconds, 1.0)

    def _run(self) -> float:
        start = time.perf_counter()
        self._training.run(self._batches)
        self._training.metrics()  # waits for the device
        return time.perf_counter() - start


@contextlib.contextmanager
def unreduced(backend: Backend) -> Iterator[None]:
    """Lets what is traced meanwhile train without reducing: every replica for itself.

    Only its time is of use.
    """

    def own(tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        return list(tensors)

    backend.reduce_sum = own  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backend.reduce_sum


def resident_batch(setup: TrainingSetup, global_batch: int | None = None) -> Any:
    """Returns an iterator that gives the first batch again and again, from memory.

    Args:
        setup: The run.
        global_batch: Another size of the batch, or None for that of the run.
    """
    sampler = setup.sampler
    if global_batch is not None:
        sampler = type(sampler)(sampler.examples, global_batch, sampler.seed)
    batches = training_dataset(
        setup.dataset.train,
        len(setup.dataset.classes),
        sampler,
        setup.config.data.augment,
        setup.sharding,
        first_step=0,
        last_step=1,
    )
    return setup.backend.iterate(batches.cache().repeat())


def measure_steps(setup: TrainingSetup, steps: int, warmup: int) -> dict[str, Any]:
    """Times a run's steps, and where their time goes.

    Args:
        setup: The run, built and not begun.
        steps: Executions to time of each kind.
        warmup: Executions before that, whose times do not count.

    Returns:
        Times in milliseconds and shares; see `distcnn.benchmarking.results.Row`.
    """
    require_steps(setup)
    setup.state.broadcast()
    batches = setup.backend.iterate(setup.training_batches(0))
    full = TimedSteps(setup.training, batches)
    kinds = {"full": full}
    kinds["resident"] = TimedSteps(setup.new_training_step(), resident_batch(setup))
    if setup.backend.replicas > 1:
        with unreduced(setup.backend):
            alone = TimedSteps(setup.new_training_step(), resident_batch(setup))
        kinds["unreduced"] = alone
    began = time.perf_counter()
    _interleaved(setup.backend, kinds, warmup)
    warmed = time.perf_counter() - began
    with _without_collection():
        # Without a pause, in which the pipeline could catch up: so a run pays for its input.
        full.reset()
        for _ in range(steps):
            full.repeat()
        times, waited = summarise(full.seconds), full.input_wait()
        _interleaved(setup.backend, kinds, steps)
    quartiles = {name: summarise(timed.seconds).p25 for name, timed in kinds.items()}
    memory = setup.backend.gather(np.array([peak_memory_mb()]))
    return {
        **{f"step_ms_{name}": value for name, value in asdict(times).items()},
        **time_fractions(quartiles, waited),
        "input_wait": waited,
        "input_images_per_second": InputReader(setup.training_batches(0)).read(_READ_SECONDS)[1]
        * setup.backend.size,
        "steps": steps,
        "compile_seconds": full.first_seconds,
        "warmup_seconds": warmed,
        "images_per_second": setup.sampler.global_batch_size / times.p25 * 1e3,
        "global_batch": setup.sampler.global_batch_size,
        "per_worker_batch": setup.sampler.global_batch_size / setup.backend.replicas,
        "peak_memory_mb": float(memory.max()),
        "flops_per_image": training_flops(setup.model),
    }


def require_steps(setup: TrainingSetup) -> None:
    """Refuses runs whose epochs have too few steps of a full batch to be timed.

    Raises:
        UsageError: Says how many there are.
    """
    full = len(setup.dataset.train) // setup.sampler.global_batch_size
    needed = 2 * setup.config.train.steps_per_execution
    if full < needed:
        raise UsageError(
            f"an epoch has {full} steps of {setup.sampler.global_batch_size} images; expected at "
            f"least {needed}: lower --train.batch_size or --train.steps_per_execution, or measure "
            "with --data.name synthetic"
        )


def time_fractions(quartiles: dict[str, float], waited: float) -> dict[str, float]:
    """Divides a step's time into shares of input, compute and communication.

    Args:
        quartiles: Times of the `full` step, of the same on a batch that is `resident` in memory,
            and, with several replicas, of that `unreduced`; taken in turn.
        waited: Share of the step spent waiting for input in a run without pauses.
    """
    full, resident = quartiles["full"], quartiles["resident"]
    input_fraction = max(1 - resident / full, waited, 0.0)
    communication_fraction = max((resident - quartiles.get("unreduced", resident)) / full, 0.0)
    communication_fraction = min(
        communication_fraction, 1 - input_fraction
    )  # where noise makes more of the parts than of the whole
    return {
        "input_share": input_fraction,
        "communication_share": communication_fraction,
        "compute_share": 1 - input_fraction - communication_fraction,
    }


def step_times_by_batch(setup: TrainingSetup, sizes: list[int], steps: int) -> dict[int, float]:
    """Returns the lower quartile of the step's time in milliseconds for each global batch."""
    timed = {
        size: TimedSteps(setup.new_training_step(), resident_batch(setup, size)) for size in sizes
    }
    for _ in range(steps):
        for each in timed.values():
            each.repeat()
    return {size: summarise(each.seconds).p25 for size, each in timed.items()}


def reduction_times(backend: Backend, sizes: list[int], repeats: int) -> dict[int, float]:
    """Returns the lower quartile of a reduction's time in milliseconds for each size in bytes."""
    found = {}
    for size in sizes:
        reduce = tf.function(_reduction(backend, size // 4))
        reduce()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            reduce().numpy()
            seconds.append(time.perf_counter() - start)
        found[size] = summarise(seconds).p25
    return found


def _reduction(backend: Backend, count: int) -> Callable[[], tf.Tensor]:
    values = tf.Variable(tf.ones([count]), trainable=False)

    def reduce() -> tf.Tensor:
        return backend.run(lambda: backend.reduce_sum([values.value()])[0][0])[0]

    return reduce


def peak_memory_mb() -> float:
    """Returns the most memory that this process has held: of its GPU, else of the host, in MB."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def _interleaved(backend: Backend, kinds: dict[str, TimedSteps], repeats: int) -> None:
    """Times each kind in turn, from a start that all processes share."""
    for timed in kinds.values():
        timed.reset()
    for _ in range(repeats):
        for timed in kinds.values():
            backend.barrier()
            timed.repeat()


@contextlib.contextmanager
def _without_collection() -> Iterator[None]:
    """Keeps Python's garbage collector out of the times."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
