"""Sample results, as of a benchmark on two cores."""

from typing import Any

from distcnn.benchmarking.peers.results import Floor, PeerComparison, PeerRow
from distcnn.benchmarking.results import (
    Comparison,
    PredictedPoint,
    Prediction,
    Results,
    Row,
)


def row(**changes: Any) -> Row:
    """A row, of weak scaling by default, with values derived from workers, batch and step time."""
    workers = changes.get("workers", 2)
    scaling = changes.get("scaling", "weak")
    batch = changes.pop("batch", 128)  # per worker for weak scaling, else global
    step_ms = changes.pop("step_ms", 250.0)
    global_batch = batch * workers if scaling == "weak" else batch
    speed = 1000 * global_batch / step_ms
    values: dict[str, Any] = {
        "scaling": scaling,
        "strategy": "horovod",
        "workers": workers,
        "cores_per_worker": 1,
        "oversubscribed": workers > 2,
        "per_worker_batch": global_batch / workers,
        "global_batch": global_batch,
        "steps": 40,
        "compile_seconds": 3.25,
        "warmup_seconds": 1.5,
        "images_per_second": speed,
        "step_ms_p25": step_ms * 0.99,
        "step_ms_p50": step_ms,
        "step_ms_p50_low": step_ms * 0.985,
        "step_ms_p50_high": step_ms * 1.015,
        "step_ms_p95": step_ms * 1.2,
        "efficiency": speed / workers / 640,
        "peak_memory_mb": 812.4,
        "flops_per_image": 4.7e7,
        "share_of_peak": 0.4123,
        "input_share": 0.021,
        "input_wait": 0.004,
        "input_images_per_second": 41_250.0,
        "compute_share": 0.9 - 0.05 * workers,
        "communication_share": 0.079 + 0.05 * workers,
        "communication_noise": 0.012 if workers > 1 else None,
        "verdict": "compute-bound: faster arithmetic would help most, not more input workers",
    }
    return Row(**{**values, **changes})


def comparison(**changes: Any) -> Comparison:
    """A comparison in which distcnn is 1.25 times as fast."""
    values: dict[str, Any] = {
        "what": "training step",
        "batch": 64,
        "repeats": 30,
        "plain_ms": 125.5,
        "distcnn_ms": 100.4,
        "ratio": 1.25,
        "ratio_low": 1.235,
        "ratio_high": 1.265,
        "noise": 0.012,
        "plain_precision": "float32",
        "distcnn_precision": "float32",
    }
    return Comparison(**{**values, **changes})


def results(**changes: Any) -> Results:
    """Weak and strong scaling with 1, 2 and 4 workers, two comparisons and a prediction."""
    weak = ((1, 200.0), (2, 215.0), (4, 452.0))
    strong = ((1, 200.0), (2, 121.0), (4, 160.0))
    values: dict[str, Any] = {
        "command": "python -m distcnn.benchmark --workers 1,2,4",
        "date": "2026-11-24T10:00:00+00:00",
        "recipe": "article",
        "model": "article",
        "parameters": 2264458,
        "precision": "float32",
        "fast_path": True,
        "data": "synthetic",
        "denominator": "images/s per core, relative to a single worker on 1 core (640 images/s)",
        "peak_gflops": 73.25,
        "rows": tuple(
            row(scaling=scaling, workers=workers, step_ms=step_ms)
            for scaling, steps in (("weak", weak), ("strong", strong))
            for workers, step_ms in steps
        ),
        "comparisons": (comparison(), comparison(what="prediction", batch=512, ratio=1.031)),
        "prediction": Prediction(
            step_fixed_ms=7.5,
            step_ms_per_image=1.504,
            latency_ms=0.05,
            bandwidth_mb_per_s=1250.0,
            bytes_per_step=9057832,
            points=(
                _point(1, 200.0, 1.0, 0.0),
                _point(2, 210.0, 0.93, -0.0233),
                _point(16, 220.0),
            ),
        ),
        "environment": {"cpu": "AMD EPYC 9B14", "cores": 2, "gpu": None, "python": "3.12.3"},
    }
    return Results(**{**values, **changes})


def peers() -> PeerComparison:
    """A comparison with PyTorch, in which jax is missing."""
    sides = (
        ("distcnn 0.1.0", 29.9, 1.0, 0.0, ("fast form on", "XLA off")),
        ("distcnn 0.1.0 again", 29.95, 1.002, 0.007, ("fast form on", "XLA off")),
        (
            "torch 2.13.0",
            52.6,
            1.759,
            0.018,
            ("eager (tried: eager 52.6 ms, torch.compile 99 ms)", "channels_last"),
        ),
    )
    rows = tuple(
        PeerRow(
            title=title,
            precision="mixed_bfloat16",
            step_ms=step_ms,
            images_per_second=64e3 / step_ms,
            ratio=ratio,
            ratio_low=ratio - half,
            ratio_high=ratio + half,
            steps=100,
            settings=settings,
            loss=1.25,
            idle_cores=0.001,
        )
        for title, step_ms, ratio, half, settings in sides
    )
    return PeerComparison(
        batch=64,
        rounds=20,
        noise=0.009,
        cpu="AMD EPYC 9B14",
        cores=2,
        load_before=0.1,
        load_after=1.9,
        seconds=61.0,
        rows=rows,
        missing=("jax is not installed: pip install jax",),
    )


def floor() -> Floor:
    """The floor of the article's step."""
    return Floor(
        batch=64,
        precision="mixed_bfloat16",
        convolutions=11,
        products=9,
        arrangement="one by one",
        rounds=100,
        step_ms=29.9,
        floor_ms=24.0,
        convolutions_ms=22.0,
        products_ms=1.9,
        ratio=1.246,
        ratio_low=1.231,
        ratio_high=1.26,
        noise=0.011,
        gflop=13.83,
        peak_gflops=902.4,
        peak_ms=15.32,
        cores=2,
    )


def _point(
    workers: int, step_ms: float, measured: float | None = None, error: float | None = None
) -> PredictedPoint:
    return PredictedPoint(
        workers=workers,
        efficiency=200 / step_ms,
        step_ms=step_ms,
        measured_efficiency=measured,
        error=error,
    )


def wide_results():
    """Results whose cells are as wide as on a large machine."""
    rows = [
        row(
            scaling=scaling,
            strategy="one_device" if workers == 1 else strategy,
            workers=workers,
            batch=65536,
            step_ms=9876.5,
            peak_memory_mb=123456.7,
        )
        for scaling in ("weak", "strong")
        for strategy in ("horovod", "multi_worker")
        for workers in (1, 16)
    ]
    wide = comparison(distcnn_precision="mixed_bfloat16", plain_ms=1234.5)
    return results(rows=tuple(rows), comparisons=(wide,))
