"""Times training steps in turn: complete, without input, and without the reduction."""

import contextlib
import dataclasses
import gc
import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.benchmarking.flops import training_flops
from distcnn.benchmarking.input_reader import InputReader
from distcnn.benchmarking.progress import Budget, Say, rounds, say_progress, silent
from distcnn.benchmarking.statistics import summarise
from distcnn.data.pipeline import training_dataset
from distcnn.distribute.base import Backend
from distcnn.errors import UsageError
from distcnn.runtime.memory import peak_bytes
from distcnn.training.setup import TrainingSetup
from distcnn.training.step import TrainingStep

_READ_SECONDS = 2.0


class TimedSteps:
    """Times one variant of the training step, execution by execution.

    Args:
        training: The training step.
        batches: Iterator over batches, from `Backend.iterate`.

    Attributes:
        first_seconds: Seconds of the first execution, including tracing and compilation.
        seconds: Seconds per step of each execution that counts, that is, of full batches only.
        total_seconds: Seconds of all executions since `reset`.
    """

    def __init__(self, training: TrainingStep, batches: Any) -> None:
        self._training = training
        self._batches = batches
        self.first_seconds = self._run()
        self.reset()

    def reset(self) -> None:
        """Discards all times measured so far."""
        self.seconds: list[float] = []
        self.total_seconds = 0.0
        self._training.pop_input_wait()

    def repeat(self) -> None:
        """Runs and times one execution; it does not count if a smaller batch ended an epoch."""
        before = self._training.step
        elapsed = self._run()
        self.total_seconds += elapsed
        done = self._training.step - before
        if self._training.step_in_epoch and done == self._training.steps_per_execution:
            self.seconds.append(elapsed / done)

    def input_wait(self) -> float:
        """Returns the fraction of the time since `reset` that was spent waiting for input."""
        return min(self._training.pop_input_wait() / self.total_seconds, 1.0)

    def _run(self) -> float:
        start = time.perf_counter()
        self._training.run(self._batches)
        self._training.wait()
        return time.perf_counter() - start


@contextlib.contextmanager
def without_reduction(backend: Backend) -> Iterator[None]:
    """Makes steps that are traced in this context skip the reduction.

    The replicas then diverge, so such steps are good for timing only.
    """

    def skip_reduction(tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        return list(tensors)

    def skip_gathering(tensors: Sequence[tf.Tensor], *, equal: bool = False) -> list[tf.Tensor]:
        return list(tensors)

    backend.reduce_sum = skip_reduction  # type: ignore[method-assign]
    backend.gather_rows = skip_gathering  # type: ignore[method-assign]
    try:
        yield
    finally:
        del backend.reduce_sum, backend.gather_rows


@contextlib.contextmanager
def first_bucket_only(backend: Backend, replicas: int) -> Iterator[list[int]]:
    """Makes steps that are traced in this context compute the gradients of the first bucket alone.

    The others are zeros, which leaves nothing of the backward pass that would compute them.

    Args:
        backend: Reduces nothing in the context.
        replicas: Number of replicas for which the bytes are counted.

    Yields:
        Filled with the bytes of each bucket.
    """
    sizes: list[int] = []

    def skip_reduction(tensors: Sequence[tf.Tensor], *, compressible: int = 0) -> list[tf.Tensor]:
        gradients, others = tensors[:compressible], tensors[compressible:]
        first = not sizes
        if compressible:
            wire = [backend.wire_type(g, compressible=True, replicas=replicas) for g in gradients]
            pairs = zip(wire, gradients, strict=True)
            sizes.append(sum(dtype.size * g.shape.num_elements() for dtype, g in pairs))
        return [*(g if first else tf.zeros_like(g) for g in gradients), *others]

    backend.reduce_sum = skip_reduction  # type: ignore[method-assign]
    try:
        yield sizes
    finally:
        del backend.reduce_sum


@contextlib.contextmanager
def at_once(backend: Backend) -> Iterator[None]:
    """Makes steps that are traced in this context reduce all gradients after the backward pass."""
    limit, backend.bucket_bytes = backend.bucket_bytes, 0
    try:
        yield
    finally:
        backend.bucket_bytes = limit


def resident_batch(setup: TrainingSetup, global_batch: int | None = None) -> Any:
    """Returns an iterator that repeats the first batch from memory.

    Args:
        setup: The run.
        global_batch: Size of the global batch, or None for that of the run.
    """
    sampler = setup.sampler
    if global_batch is not None:
        sampler = dataclasses.replace(sampler, global_batch_size=global_batch)
    batches = training_dataset(
        setup.dataset.train,
        len(setup.dataset.classes),
        sampler,
        setup.config.data.augment,
        setup.sharding,
        reduced_decoding=setup.config.data.reduced_decoding,
        first_step=0,
        last_step=1,
    )
    return setup.backend.iterate(batches.cache().repeat())


def measure_steps(setup: TrainingSetup, steps: int, warmup: int) -> dict[str, Any]:
    """Times the steps of a run and finds where their time goes.

    Args:
        setup: The run, built but not started.
        steps: Number of executions of each variant to time.
        warmup: Number of executions before that, whose times do not count.

    Returns:
        Times in milliseconds and fractions; see `distcnn.benchmarking.results.Row`.
    """
    require_steps(setup)
    say = say_progress if setup.context.cluster.is_chief else silent
    setup.state.broadcast()
    say("tracing the step")
    variants = _step_variants(setup)
    full = variants["full"]
    start = time.perf_counter()
    _run_in_turn(setup.backend, variants, warmup, "warming up", say)
    warmup_seconds = time.perf_counter() - start
    with _without_garbage_collection():
        # Without pauses in which the pipeline could catch up, as in a real run.
        full.reset()
        for _ in rounds("timing the step", steps, Budget(math.inf), say):
            full.repeat()
        times, input_wait = summarise(full.seconds), full.input_wait()
        _run_in_turn(setup.backend, variants, steps, "timing its variants", say)
    quartiles = _quartiles(setup.backend, variants)
    memory = setup.backend.gather(np.array([peak_memory_mb()]))
    _, input_rate = InputReader(setup.training_batches(0)).read(_READ_SECONDS)
    global_batch = setup.sampler.global_batch_size
    return {
        **{f"step_ms_{name}": value for name, value in dataclasses.asdict(times).items()},
        **time_fractions(quartiles, input_wait),
        "communication_share_at_once": _share_at_once(quartiles),
        "communication_noise": _communication_noise(quartiles),
        "input_wait": input_wait,
        "input_images_per_second": input_rate * setup.backend.size,
        "steps": steps,
        "compile_seconds": full.first_seconds,
        "warmup_seconds": warmup_seconds,
        "images_per_second": global_batch / times.p25 * 1e3,
        "global_batch": global_batch,
        "per_worker_batch": global_batch / setup.backend.replicas,
        "peak_memory_mb": float(memory.max()),
        "flops_per_image": training_flops(setup.model),
    }


def _quartiles(backend: Backend, variants: dict[str, TimedSteps]) -> dict[str, float]:
    """Returns lower quartiles of what `time_fractions` takes, in milliseconds.

    Each execution counts as long as the slowest worker takes for it: all wait for that one, so the
    network is not to blame.
    """
    by_worker = {n: backend.gather(np.array(timed.seconds)) for n, timed in variants.items()}
    slowest = {n: summarise(seconds.max(axis=0)).p25 for n, seconds in by_worker.items()}
    if "unreduced" in by_worker:
        slowest["average"] = summarise(by_worker["unreduced"].mean(axis=0)).p25
    return slowest


def _step_variants(setup: TrainingSetup) -> dict[str, TimedSteps]:
    """Builds the step with input and on a resident batch.

    If it reduces, also without reduction, and, if it reduces in buckets, all at once. A step takes
    another time when the same graph is built again: the one without reduction is built twice.
    """
    batches = setup.backend.iterate(setup.training_batches(0))
    variants = {
        "full": TimedSteps(setup.training, batches),
        "resident": TimedSteps(setup.new_training_step(), resident_batch(setup)),
    }
    if setup.backend.replicas > 1:
        for name in ("unreduced", "unreduced_again"):
            with without_reduction(setup.backend):
                step = TimedSteps(setup.new_training_step(), resident_batch(setup))
            variants[name] = step
    if setup.backend.replicas > 1 and setup.backend.bucket_bytes:
        with at_once(setup.backend):
            step = TimedSteps(setup.new_training_step(), resident_batch(setup))
        variants["at_once"] = step
    return variants


def require_steps(setup: TrainingSetup) -> None:
    """Checks that an epoch has enough full batches to be timed.

    Raises:
        UsageError: If it has fewer than two executions of full batches.
    """
    full_steps = len(setup.dataset.train) // setup.sampler.global_batch_size
    needed = 2 * setup.config.train.steps_per_execution
    if full_steps < needed:
        raise UsageError(
            f"an epoch has {full_steps} steps of {setup.sampler.global_batch_size} images; "
            f"expected at least {needed}; lower --train.batch_size or "
            "--train.steps_per_execution, or measure with --data.name synthetic"
        )


def time_fractions(quartiles: dict[str, float], input_wait: float) -> dict[str, float]:
    """Divides the step time into fractions for input, compute and communication.

    Args:
        quartiles: Lower quartiles of the step time, taken in turn: `full` with input, `resident`
            on a batch in memory, and, with several replicas, `unreduced` and `unreduced_again` on
            that batch without the reduction, as the slowest worker takes for it, and as they take
            on `average` for the first of these.
        input_wait: Fraction of the step time spent waiting for input in a run without pauses.

    Returns:
        `input_share`, `communication_share` and `compute_share`, which add up to 1, and
        `imbalance_share`, a part of the last.
    """
    full, resident = quartiles["full"], quartiles["resident"]
    input_fraction = max(1 - resident / full, input_wait, 0.0)
    unreduced = quartiles.get("unreduced", resident)
    communication_fraction = max((resident - _computing(quartiles)) / full, 0.0)
    # Noise can make the parts add up to more than the whole.
    communication_fraction = min(communication_fraction, 1 - input_fraction)
    compute_fraction = 1 - input_fraction - communication_fraction
    imbalance = max((unreduced - quartiles.get("average", unreduced)) / full, 0.0)
    return {
        "input_share": input_fraction,
        "communication_share": communication_fraction,
        "compute_share": compute_fraction,
        "imbalance_share": min(imbalance, compute_fraction),
    }


def _share_at_once(quartiles: dict[str, float]) -> float | None:
    """Returns the fraction of the step time that communication takes if nothing overlaps."""
    if "at_once" not in quartiles:
        return None
    return max(1 - _computing(quartiles) / quartiles["at_once"], 0.0)


def _communication_noise(quartiles: dict[str, float]) -> float | None:
    """Returns the difference between two steps without reduction as a fraction of a step (A/A)."""
    if "unreduced_again" not in quartiles:
        return None
    return abs(quartiles["unreduced_again"] - quartiles["unreduced"]) / quartiles["full"]


def _computing(quartiles: dict[str, float]) -> float:
    """Returns the time of a step on a batch in memory that sends nothing."""
    if "unreduced" not in quartiles:
        return quartiles["resident"]
    own = [quartiles[name] for name in ("unreduced", "unreduced_again") if name in quartiles]
    return sum(own) / len(own)


def step_times_by_batch(setup: TrainingSetup, sizes: list[int], steps: int) -> dict[int, float]:
    """Returns the lower quartile of the step time in milliseconds for each global batch size."""
    timed_by_size = {
        size: TimedSteps(setup.new_training_step(), resident_batch(setup, size)) for size in sizes
    }
    for _ in range(steps):
        for timed in timed_by_size.values():
            timed.repeat()
    return {size: summarise(timed.seconds).p25 for size, timed in timed_by_size.items()}


def measure_overlap(setup: TrainingSetup, repeats: int, replicas: int) -> tuple[list[int], float]:
    """Returns the buckets of gradients, and how much of a step is left when the first is ready.

    Args:
        setup: The run, of several replicas.
        repeats: Number of executions to time.
        replicas: Number of replicas for which the bytes are counted.

    Returns:
        The bytes of each bucket, and the fraction of the computing after the first one, in [0, 1];
        0 if there is only one.
    """
    with first_bucket_only(setup.backend, replicas) as sizes:
        first = TimedSteps(setup.new_training_step(), resident_batch(setup))
    if len(sizes) == 1:
        return sizes, 0.0
    with without_reduction(setup.backend):
        variants = {
            "first": first,
            "all": TimedSteps(setup.new_training_step(), resident_batch(setup)),
        }
    say = say_progress if setup.context.cluster.is_chief else silent
    _run_in_turn(setup.backend, variants, repeats, "timing the overlap", say)
    quartiles = {name: summarise(timed.seconds).p25 for name, timed in variants.items()}
    return sizes, max(1 - quartiles["first"] / quartiles["all"], 0.0)


def reduction_times(backend: Backend, sizes: list[int], repeats: int) -> dict[int, float]:
    """Returns the lower quartile of the reduction time in milliseconds for each size in bytes."""
    times = {}
    for size in sizes:
        reduce = tf.function(_reduction(backend, size // 4))
        reduce()
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            reduce().numpy()
            seconds.append(time.perf_counter() - start)
        times[size] = summarise(seconds).p25
    return times


def _reduction(backend: Backend, count: int) -> Callable[[], tf.Tensor]:
    values = tf.Variable(tf.ones([count]), trainable=False)

    def reduce() -> tf.Tensor:
        return backend.run(lambda: backend.reduce_sum([values.value()])[0][0])[0]

    return reduce


def peak_memory_mb() -> float:
    """Returns the peak memory of this process in MB: on its GPU if it has one, else on the host."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"] / 1e6
    return peak_bytes() / 1e6


def _run_in_turn(
    backend: Backend, variants: dict[str, TimedSteps], repeats: int, what: str, say: Say
) -> None:
    """Times the variants in turn, with a barrier before each execution."""
    for timed in variants.values():
        timed.reset()
    for _ in rounds(what, repeats, Budget(math.inf), say):
        for timed in variants.values():
            backend.barrier()
            timed.repeat()


@contextlib.contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Keeps Python's garbage collector from disturbing the times."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
