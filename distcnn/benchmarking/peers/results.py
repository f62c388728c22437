"""What a comparison with peers and the measurement of the floor return."""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class PeerRow:
    """The measurements of one side.

    Attributes:
        title: Name and version.
        precision: Dtype policy.
        step_ms: Lower quartile over the turns of the median step time, in milliseconds.
        images_per_second: Images of a step / `step_ms`.
        ratio: Step time / distcnn's; above 1, distcnn is faster.
        ratio_low: Lower end of the 95 % bootstrap interval of the ratio.
        ratio_high: Upper end of the 95 % bootstrap interval of the ratio.
        steps: Number of steps that were timed.
        settings: The settings that matter for the speed, in words.
        loss: Loss at the end.
        idle_cores: How many cores the process kept busy while others were timed, on average.
    """

    title: str
    precision: str
    step_ms: float
    images_per_second: float
    ratio: float
    ratio_low: float
    ratio_high: float
    steps: int
    settings: tuple[str, ...]
    loss: float
    idle_cores: float


@dataclass(frozen=True, kw_only=True)
class PeerComparison:
    """Training steps of several frameworks, timed in turn, each in its own process.

    Attributes:
        batch: Images of a step; they stay in memory, so that input costs nothing.
        rounds: Number of rounds, in each of which every side had one turn.
        noise: Deviation from 1 of the ratio of distcnn to itself in another process (A/A).
        cpu: Name of the CPU.
        gpu: Name of the GPU that the sides computed on, or None.
        cores: Cores that each side computed on.
        load_before: Load of the machine (over 1 minute) before the comparison.
        load_after: Load of the machine (over 1 minute) after it, which includes the comparison.
        seconds: Time that it took.
        rows: The sides: distcnn, distcnn again, then the peers.
        missing: A line for each peer that was left out.
    """

    batch: int
    rounds: int
    noise: float
    cpu: str
    cores: int
    load_before: float
    load_after: float
    seconds: float
    rows: tuple[PeerRow, ...]
    missing: tuple[str, ...]
    gpu: str | None = None


@dataclass(frozen=True, kw_only=True)
class Floor:
    """The step against its convolutions and matrix products alone, timed in turn.

    Attributes:
        batch: Images of a step.
        precision: Dtype policy.
        convolutions: Number of convolutions, forward and backward.
        products: Number of matrix products, forward and backward.
        arrangement: How they run: "one by one" or "as scheduled by TensorFlow", whichever is
            faster.
        rounds: Number of times that the step and the floor were timed.
        step_ms: Lower quartile of the step time in milliseconds, without input.
        floor_ms: Lower quartile of the time of the convolutions and products in milliseconds.
        convolutions_ms: The part of the convolutions, timed alone.
        products_ms: The part of the matrix products, timed alone.
        ratio: `step_ms` / `floor_ms`.
        ratio_low: Lower end of the 95 % bootstrap interval of the ratio.
        ratio_high: Upper end of the 95 % bootstrap interval of the ratio.
        noise: Deviation from 1 of the floor against itself (A/A).
        gflop: Arithmetic of the convolutions and products, in 10^9 operations.
        peak_gflops: Best rate of a large matrix product, timed in turn too, in GFLOP/s.
        peak_ms: Time that the arithmetic takes at that rate, in milliseconds.
        cores: Cores that were used.
    """

    batch: int
    precision: str
    convolutions: int
    products: int
    arrangement: str
    rounds: int
    step_ms: float
    floor_ms: float
    convolutions_ms: float
    products_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    noise: float
    gflop: float
    peak_gflops: float
    peak_ms: float
    cores: int
