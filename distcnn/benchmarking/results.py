"""The results of a benchmark, as stored in `results.json`."""

import math
import types
from dataclasses import MISSING, asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Self, Union, cast, get_args, get_origin, get_type_hints

from distcnn.benchmarking.peers.results import Floor, PeerComparison
from distcnn.errors import DistcnnError
from distcnn.runtime.files import parse_json


@dataclass(frozen=True, kw_only=True)
class Row:
    """The measurements for one number of workers.

    Attributes:
        scaling: "weak" for a constant batch per worker, "strong" for a constant global batch.
        strategy: Name of the distribution strategy.
        workers: Number of workers.
        cores_per_worker: CPU cores of each worker; None on GPUs.
        oversubscribed: Whether workers share cores or GPUs because there are too few.
        per_worker_batch: Images per step of one worker.
        global_batch: Images per step of all workers.
        steps: Number of measured steps.
        compile_seconds: Time of the first execution, which includes tracing and compilation.
        warmup_seconds: Time of the other executions before the measured ones.
        images_per_second: Throughput of all workers.
        step_ms_p25: Lower quartile of the step time in milliseconds.
        step_ms_p50: Median of the step time in milliseconds.
        step_ms_p50_low: Lower end of the 95 % confidence interval of the median.
        step_ms_p50_high: Upper end of the 95 % confidence interval of the median.
        step_ms_p95: 95th percentile of the step time in milliseconds.
        efficiency: Throughput per worker relative to `Results.denominator`, or None.
        peak_memory_mb: Largest peak memory of any worker, in MB.
        flops_per_image: Floating point operations of a training step per image.
        share_of_peak: Achieved fraction of the peak arithmetic rate, in [0, 1].
        input_share: Fraction of the step time that input costs, in [0, 1]: waiting for it, and, on
            a CPU, sharing the cores with it.
        input_wait: Fraction of the step time spent only waiting for input, in [0, 1].
        input_images_per_second: Throughput of the input pipeline when nothing is computed.
        compute_share: Fraction of the step time that the slowest worker spends computing, in
            [0, 1].
        imbalance_share: Part of it in which the average worker waits for that one.
        communication_share: Fraction of the step time spent communicating while nothing is
            computed, in [0, 1].
        communication_share_at_once: The same of a step that reduces all gradients at once, after
            the backward pass; None if the steps do not reduce in buckets.
        communication_noise: Difference between two steps that send nothing, as a fraction of the
            step time (A/A): so much the share of communication varies by itself. None for one
            worker.
        verdict: What limits the speed and which flag to change, in words.
    """

    scaling: Literal["weak", "strong"]
    strategy: str
    workers: int
    cores_per_worker: int | None
    oversubscribed: bool
    per_worker_batch: float
    global_batch: int
    steps: int
    compile_seconds: float
    warmup_seconds: float
    images_per_second: float
    step_ms_p25: float
    step_ms_p50: float
    step_ms_p50_low: float
    step_ms_p50_high: float
    step_ms_p95: float
    efficiency: float | None
    peak_memory_mb: float
    flops_per_image: float
    share_of_peak: float
    input_share: float
    input_wait: float
    input_images_per_second: float
    compute_share: float
    imbalance_share: float = 0.0
    communication_share: float
    communication_share_at_once: float | None = None
    communication_noise: float | None = None
    verdict: str

    @property
    def images_per_second_per_worker(self) -> float:
        """Throughput per worker."""
        return self.images_per_second / self.workers

    @property
    def key(self) -> tuple[str, str, int, int | None, int]:
        """Identity of the row: strategy, scaling, workers, cores per worker, global batch."""
        return (
            self.strategy,
            self.scaling,
            self.workers,
            self.cores_per_worker,
            self.global_batch,
        )

    @property
    def placement(self) -> str:
        """Workers, times cores per worker on CPUs: `4 x 2`, with a `*` if oversubscribed."""
        cores = "" if self.cores_per_worker is None else f" x {self.cores_per_worker}"
        return f"{self.workers}{cores}{'*' if self.oversubscribed else ''}"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of distcnn with a plain Keras script, timed in turn in one process.

    Attributes:
        what: The operation: "training step", "input of a batch" (where the plain script maps images
            one by one), "evaluation" or "prediction".
        batch: Images per operation.
        repeats: Number of times that each side was timed.
        plain_ms: Lower quartile of the plain script's time in milliseconds.
        distcnn_ms: Lower quartile of distcnn's time in milliseconds.
        ratio: Plain time / distcnn time; above 1, distcnn is faster.
        ratio_low: Lower end of the 95 % bootstrap interval of the ratio.
        ratio_high: Upper end of the 95 % bootstrap interval of the ratio.
        noise: Deviation from 1 of the plain script against itself (A/A), such as 0.012.
        plain_precision: Dtype policy of the plain script.
        distcnn_precision: Dtype policy of distcnn.
    """

    what: str
    batch: int
    repeats: int
    plain_ms: float
    distcnn_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    noise: float
    plain_precision: str
    distcnn_precision: str


@dataclass(frozen=True, kw_only=True)
class PredictedPoint:
    """The prediction for one number of workers.

    Attributes:
        workers: Number of workers.
        efficiency: Predicted efficiency of weak scaling.
        step_ms: Predicted step time in milliseconds.
        measured_efficiency: Measured efficiency, or None if not measured.
        error: Predicted / measured step time - 1, or None if not measured.
    """

    workers: int
    efficiency: float
    step_ms: float
    measured_efficiency: float | None
    error: float | None


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A fitted model of the step time, and the weak scaling that it predicts.

    Workers on several hosts share no memory, so the model is fitted to, and compared with,
    measurements without shared memory.

    Attributes:
        step_fixed_ms: The part of the step time that does not depend on the batch, in milliseconds.
        step_ms_per_image: Step time that each image of a worker's batch adds, in milliseconds.
        latency_ms: Latency of one message between workers, in milliseconds.
        bandwidth_mb_per_s: Bandwidth between workers, in MB/s.
        bytes_per_step: Bytes of gradients that each worker reduces in a step.
        overlap: Fraction of the computing that is left when the reduction starts, in [0, 1].
        last_bytes: Bytes that are reduced after the computing.
        points: The predictions, at the per-worker batch of the weak rows.
    """

    step_fixed_ms: float
    step_ms_per_image: float
    latency_ms: float
    bandwidth_mb_per_s: float
    bytes_per_step: int
    overlap: float = 0.0
    last_bytes: int = 0
    points: tuple[PredictedPoint, ...]


@dataclass(frozen=True, kw_only=True)
class Results:
    """All results of a benchmark.

    Attributes:
        command: The command line that was run.
        date: When it ran, in ISO 8601.
        recipe: Name of the recipe.
        model: Name of the model.
        parameters: Number of parameters of the model.
        precision: Name of the dtype policy.
        fast_path: Whether the model was computed in its fast form.
        data: Name of the data set.
        link: Speed of the link between workers on different hosts, or None for one host.
        denominator: Definition of efficiency, in words.
        peak_gflops: Peak arithmetic rate of a core or GPU in GFLOP/s, which `Row.share_of_peak`
            is relative to.
        rows: The measurements.
        comparisons: Comparisons with a plain Keras script.
        prediction: The prediction for more workers, or None.
        environment: Versions and hardware; see `distcnn.storage.environment`.
        peers: The comparison with other frameworks, or None.
        floor: The step against its convolutions and products alone, or None.
    """

    command: str
    date: str
    recipe: str
    model: str
    parameters: int
    precision: str
    fast_path: bool
    data: str
    denominator: str
    peak_gflops: float
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    prediction: Prediction | None
    environment: dict[str, Any]
    link: str | None = None
    peers: PeerComparison | None = None
    floor: Floor | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the content of `results.json`."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: object, source: Path | str) -> Self:
        """Builds the results from the content of `results.json`.

        Args:
            content: The decoded JSON.
            source: Name of the file, for error messages.

        Raises:
            DistcnnError: If keys are missing or unknown, or a value has the wrong type.
        """
        return cast(Self, _decode(cls, content, f"{source}: ", "the file"))


def read_results(path: Path) -> Results:
    """Reads `results.json`.

    Args:
        path: The file, or the folder that contains it.

    Raises:
        DistcnnError: If it is missing or damaged.
    """
    file = path / "results.json" if path.is_dir() else path
    try:
        content = parse_json(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DistcnnError(
            f"{file} cannot be read: {error.strerror}; expected the results.json of a benchmark"
        ) from None
    except ValueError as error:
        raise DistcnnError(
            f"{file} is not JSON: {error}; expected the results.json of a benchmark; run it again"
        ) from None
    return Results.from_json(content, file)


def _decode(kind: Any, content: Any, prefix: str, name: str) -> Any:
    """Converts decoded JSON to one of the types above.

    Args:
        kind: The type to convert to.
        content: The decoded JSON.
        prefix: Start of error messages, which names the file.
        name: Position of the content in the file.
    """
    arguments = get_args(kind)
    if get_origin(kind) in (Union, types.UnionType):
        (kind,) = (argument for argument in arguments if argument is not type(None))
        return None if content is None else _decode(kind, content, prefix, name)
    if get_origin(kind) is tuple and isinstance(content, list | tuple):
        return tuple(
            _decode(arguments[0], entry, prefix, f"{name}[{number}]")
            for number, entry in enumerate(content)
        )
    if is_dataclass(kind) and isinstance(content, dict):
        _check_keys(kind, content, prefix, name)
        parent = "" if kind is Results else f"{name}."
        hints = get_type_hints(kind)
        return cast(Any, kind)(
            **{key: _decode(hints[key], content[key], prefix, parent + key) for key in content}
        )
    if not _is_value_of(kind, content):
        received = repr(content) if len(repr(content)) <= 80 else type(content).__name__
        raise DistcnnError(f"{prefix}{name} is {received}; expected {_describe(kind)}")
    return float(content) if kind is float else content


def _check_keys(kind: Any, content: dict[str, Any], prefix: str, name: str) -> None:
    expected = [field.name for field in fields(kind)]
    required = [field.name for field in fields(kind) if field.default is MISSING]
    missing = [key for key in required if key not in content]
    unknown = [key for key in content if key not in expected]
    if missing or unknown:
        faults = [f"lacks {', '.join(missing)}"] if missing else []
        if unknown:
            faults.append(f"has the unknown key{'s' * (len(unknown) > 1)} {', '.join(unknown)}")
        raise DistcnnError(
            f"{prefix}{name} {' and '.join(faults)}; expected {', '.join(expected)}; run the "
            "benchmark again with this version"
        )


def _is_value_of(kind: Any, content: object) -> bool:
    if get_origin(kind) is Literal:
        return content in get_args(kind)
    if kind is float:
        is_number = isinstance(content, int | float) and not isinstance(content, bool)
        return is_number and math.isfinite(cast(float, content))
    if kind is int:
        return isinstance(content, int) and not isinstance(content, bool)
    return isinstance(content, get_origin(kind) or kind)


def _describe(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return " or ".join(map(repr, get_args(kind)))
    names = {float: "a finite number", int: "an integer", str: "text", bool: "true or false"}
    is_list = get_origin(kind) is tuple
    return names.get(kind, "a list" if is_list else "an object")
