"""Runs a benchmark: starts the groups of workers and assembles their measurements."""

import contextlib
import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from distcnn.benchmarking.bottleneck import describe_bottleneck
from distcnn.benchmarking.comparing import Compared, ComparisonPlan
from distcnn.benchmarking.link import Link, linked_hosts
from distcnn.benchmarking.machine import CoreAllocation, Machine
from distcnn.benchmarking.process_groups import run_workers, scratch_folder
from distcnn.benchmarking.progress import print_progress
from distcnn.benchmarking.results import PredictedPoint, Prediction, Results, Row
from distcnn.benchmarking.scaling_model import ScalingModel, fit_scaling_model
from distcnn.config import Config
from distcnn.distribute.strategies import AUTO, STRATEGIES, default_strategy, strategy_of
from distcnn.errors import UsageError

log = logging.getLogger("distcnn")

Mode = Literal["weak", "strong"]


class ScalingBenchmark:
    """Measures one configuration with several numbers of workers.

    Args:
        config: Configuration of the training run.
        machine: The hardware to run on.
        counts: Numbers of workers to measure.
        steps: Number of executions of each variant of the step to time.
        warmup: Number of executions before that.
        cores_per_worker: "fixed", "divided" or a number; see the help of the flag.
        link: Speed of the link between workers, each on a host of its own; None for one host.

    Raises:
        UsageError: If `cores_per_worker` is invalid, the strategy is that of a single device, or
            the link is for a strategy that has all workers in one process.
    """

    def __init__(
        self,
        config: Config,
        machine: Machine,
        counts: Sequence[int],
        *,
        steps: int,
        warmup: int,
        cores_per_worker: str,
        link: str | None = None,
    ) -> None:
        self._config = config
        self._machine = machine
        self._counts = list(counts)
        self._steps = steps
        self._warmup = warmup
        self._cores = CoreAllocation(machine, cores_per_worker, tuple(counts))
        self._strategy = _strategy_for_several(config)
        self._rate = link
        self._link: Link | None = None
        if link is not None and not strategy_of(self._strategy).joins_processes:
            raise UsageError(
                f"link joins workers in different processes, but distribute.strategy is "
                f"{self._strategy}; use horovod or multi_worker"
            )
        self._peak_gflops = 0.0  # of one core or GPU; known after the first group

    def run(
        self,
        modes: Sequence[Mode],
        *,
        comparisons: ComparisonPlan,
        predicted: Sequence[int],
        command: str,
        date: str,
    ) -> Results:
        """Runs all measurements.

        Args:
            modes: "weak", "strong" or both.
            comparisons: What to compare the step with.
            predicted: Numbers of workers to predict.
            command: The command line, for the record.
            date: Date and time in ISO 8601, for the record.

        Returns:
            The results.

        Raises:
            UsageError: If the global batch is smaller than a number of workers.
            DistcnnError: If a group of workers fails.
        """
        with scratch_folder() as folder, self._hosts():
            compared = self._compare(comparisons, folder)  # first, as it may refuse the model
            measured = {count: self._measure(count, modes, folder) for count in self._counts}
            model = self._model(folder, predicted) if predicted else None
        first = measured[self._counts[0]][modes[0]]
        replicas = 1 if self._machine.gpus else self._counts[0] // first["resolved"]["processes"]
        process_cores = replicas * (self._cores.per_worker(self._counts[0]) or 1)
        self._peak_gflops = first["peak_gflops"] / min(process_cores, self._machine.cores)
        rows = self._rows(measured, modes)
        resolved = first["resolved"]
        return Results(
            command=command,
            date=date,
            recipe=self._config.recipe,
            model=resolved["model"],
            parameters=resolved["parameters"],
            precision=resolved["precision"],
            fast_path=resolved["fast_path"],
            data=resolved["data"],
            link=self._rate,
            denominator=self._denominator(rows),
            peak_gflops=self._peak_gflops,
            rows=tuple(rows),
            comparisons=compared.with_plain,
            peers=compared.with_peers,
            floor=compared.floor,
            prediction=self._prediction(*model, predicted) if model else None,
            environment=first["environment"] | {"cores": self._machine.cores},
        )

    @contextlib.contextmanager
    def _hosts(self) -> Iterator[None]:
        """Creates the hosts of the workers for the context, if they are joined by a link."""
        if self._rate is None:
            yield
            return
        with linked_hosts(self._rate, max(2, *self._counts)) as self._link:
            yield

    def _measure(self, workers: int, modes: Sequence[Mode], folder: Path) -> dict[str, Any]:
        # For a single worker, weak and strong scaling are the same.
        distinct_modes = modes if workers > 1 else modes[:1]
        log.info("measuring       %d worker%s", workers, "s" if workers > 1 else "")
        measured = []
        for mode in distinct_modes:  # in separate processes, so that peak memory is separate
            name = f"{workers}-{mode}"
            file = self._write(self._config_for(workers, mode), folder, name)
            arguments = {"count": self._steps, "warmup": self._warmup}
            entry = {"kind": "steps", "config": file, "arguments": arguments}
            measured += self._group(workers, [entry], folder / f"group-{name}")
        return dict(zip(modes, measured if workers > 1 else measured * len(modes), strict=True))

    def _compare(self, comparisons: ComparisonPlan, folder: Path) -> Compared:
        if not comparisons:
            return Compared()
        file = self._write(self._config_for(1, "weak"), folder, "compare")
        return comparisons.run(file, self._machine, folder)

    @property
    def _single_worker_batch(self) -> int:
        """Images per step of a single worker."""
        train = self._config.train
        return train.global_batch_size or train.batch_size * train.accumulation_steps

    def _model(
        self, folder: Path, predicted: Sequence[int]
    ) -> tuple[ScalingModel, dict[int, float]]:
        """Measures the times that the scaling model needs, and fits it.

        Predictions are mostly for many workers on several hosts, so shared memory is off, and every
        gradient travels itself.

        Returns:
            The model, and the measured step time in milliseconds by number of workers, for weak
            scaling.
        """
        log.info("measuring       steps by batch, and reductions by size")
        batch = self._single_worker_batch
        counts = [n for n in self._counts if n > 1 and not self._cores.oversubscribed(n)] or [2]
        most = max(counts)
        cores = self._cores.per_worker(most)
        measured = {}
        for workers in (1, *counts):
            config = self._config_for(workers, "weak")
            unshared = dataclasses.replace(config.distribute, shared_memory="off", factors="off")
            name = f"model-{workers}"
            file = self._write(dataclasses.replace(config, distribute=unshared), folder, name)
            sizes = {max(1, batch // 4), max(1, batch // 2), 2 * batch} if workers == 1 else set()
            arguments = {
                "batches": sorted({*sizes, workers * batch}),
                "repeats": max(self._steps, 25),
                "replicas": max(predicted),
            }
            entry = {"kind": "model", "config": file, "arguments": arguments}
            (measured[workers],) = self._group(workers, [entry], folder / name, cores)
        model = fit_scaling_model(
            {int(k): v for k, v in measured[1]["step_ms"].items()},
            {int(k): v for k, v in measured[most]["reduction_ms"].items()},
            most,
            measured[most]["buckets"],
            measured[most]["overlap"],
        )
        step_ms = {
            workers: times["step_ms"][str(workers * batch)]
            for workers, times in measured.items()
            if not self._cores.oversubscribed(workers)
        }
        return model, step_ms

    def _group(
        self, workers: int, entries: list[dict[str, Any]], folder: Path, cores: int | None = None
    ) -> list[Any]:
        process_cores = cores or self._cores.per_worker(workers)
        strategy = self._strategy_for(workers)
        if process_cores is not None and not strategy_of(strategy).joins_processes:
            # All replicas are in one process.
            process_cores = min(process_cores * workers, self._machine.cores)
        plan = {"cores_per_process": process_cores, "entries": entries}
        return run_workers(strategy, workers, plan, folder, print_progress, self._link)

    def _strategy_for(self, workers: int) -> str:
        return self._strategy if workers > 1 else default_strategy(1)

    def _config_for(self, workers: int, mode: Mode) -> Config:
        """Returns the configuration for a number of workers, with practically endless epochs."""
        config = self._config
        batch = self._single_worker_batch * (workers if mode == "weak" else 1)
        if batch < workers:
            raise UsageError(
                f"the global batch of {batch} images cannot be divided among {workers} workers; "
                "raise --train.batch_size"
            )
        name = self._strategy_for(workers)
        strategy = strategy_of(name)
        devices = None if strategy.joins_processes or workers == 1 else workers
        enough_examples = 20 * batch * config.train.steps_per_execution
        examples = max(config.data.synthetic_examples, enough_examples)
        return dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, synthetic_examples=examples),
            train=dataclasses.replace(config.train, global_batch_size=batch, epochs=100_000),
            distribute=dataclasses.replace(
                config.distribute,
                strategy=name,
                devices=devices,
                compression=config.distribute.compression if strategy.can_compress else "none",
            ),
        )

    def _write(self, config: Config, folder: Path, name: str) -> str:
        file = folder / f"{name}.yaml"
        file.write_text(config.to_yaml())
        return str(file)

    def _rows(self, measured: dict[int, dict[str, Any]], modes: Sequence[Mode]) -> list[Row]:
        rows = []
        for mode in modes:
            single_rate = self._rate_per_device(measured, 1, mode) if 1 in measured else None
            for workers in self._counts:
                rate = self._rate_per_device(measured, workers, mode)
                efficiency = rate / single_rate if single_rate else None
                rows.append(self._row(measured[workers][mode], mode, workers, efficiency))
        return rows

    def _rate_per_device(
        self, measured: dict[int, dict[str, Any]], workers: int, mode: Mode
    ) -> float:
        """Returns the images per second of each core or GPU assigned to the workers."""
        return measured[workers][mode]["images_per_second"] / self._cores.total(workers)

    def _row(
        self, measured: dict[str, Any], mode: Mode, workers: int, efficiency: float | None
    ) -> Row:
        resolved = measured["resolved"]
        row_fields = {field.name for field in dataclasses.fields(Row)}
        gflops = measured["flops_per_image"] * measured["images_per_second"] / 1e9
        devices = min(self._cores.total(workers), self._machine.gpus or self._machine.cores)
        return Row(
            **{name: value for name, value in measured.items() if name in row_fields},
            scaling=mode,
            strategy=resolved["strategy"],
            workers=workers,
            cores_per_worker=self._cores.per_worker(workers),
            oversubscribed=self._cores.oversubscribed(workers),
            efficiency=efficiency,
            share_of_peak=gflops / devices / self._peak_gflops,
            verdict=describe_bottleneck(
                self._config,
                measured,
                step_ms=measured["step_ms_p25"],
                precision=resolved["precision"],
                oversubscribed=self._cores.oversubscribed(workers),
                fast_path=resolved["fast_path"],
                transport=resolved["transport"],
                fastest_policy=measured["fastest_policy"],
            ),
        )

    def _denominator(self, rows: Sequence[Row]) -> str:
        single = next((row for row in rows if row.workers == 1), None)
        if single is None:
            return "not available, as a single worker was not measured"
        cores = single.cores_per_worker
        device = "GPU" if cores is None else "core"
        placement = "1 GPU" if cores is None else f"{cores} core{'s' * (cores > 1)}"
        return (
            f"images/s per {device}, relative to a single worker on {placement} "
            f"({single.images_per_second:.0f} images/s)"
        )

    def _prediction(
        self,
        model: ScalingModel,
        measured_ms: dict[int, float],
        predicted: Sequence[int],
    ) -> Prediction:
        """Predicts weak scaling for the requested and for the measured numbers of workers."""
        batch = self._single_worker_batch
        points = []
        for workers in sorted({*predicted, *measured_ms}):
            step_ms, measured = model.step_ms(workers, batch), measured_ms.get(workers)
            points.append(
                PredictedPoint(
                    workers=workers,
                    step_ms=step_ms,
                    efficiency=model.efficiency(workers, batch),
                    measured_efficiency=measured_ms[1] / measured if measured else None,
                    error=step_ms / measured - 1 if measured else None,
                )
            )
        return Prediction(
            step_fixed_ms=model.fixed_ms,
            step_ms_per_image=model.per_image_ms,
            latency_ms=model.latency_ms,
            bandwidth_mb_per_s=model.bytes_per_ms / 1e3,
            bytes_per_step=model.bytes_per_step,
            overlap=model.overlap,
            last_bytes=model.last_bytes,
            points=tuple(points),
        )


def _strategy_for_several(config: Config) -> str:
    """Returns the strategy for several workers: the configured one, or the default."""
    asked = config.distribute.strategy
    if asked == AUTO:
        return default_strategy(2)
    if not strategy_of(asked).trains_several:
        able = [name for name, other in STRATEGIES.items() if other.trains_several]
        raise UsageError(
            f"distribute.strategy is {asked}; expected {', '.join(able)} or auto, as several "
            "workers are measured"
        )
    return asked
