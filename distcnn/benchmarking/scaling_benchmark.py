"""One benchmark: which groups of workers to start, and what becomes of their findings."""

import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from distcnn.benchmarking.bottleneck import describe_bottleneck
from distcnn.benchmarking.machine import CoreAllocation, Machine
from distcnn.benchmarking.process_groups import run_workers, scratch_folder
from distcnn.benchmarking.results import Comparison, PredictedPoint, Prediction, Results, Row
from distcnn.benchmarking.scaling_model import ScalingModel, fit
from distcnn.config import Config
from distcnn.distribute.strategies import AUTO, STRATEGIES, default_strategy, strategy_of
from distcnn.errors import UsageError

log = logging.getLogger("distcnn")

Mode = Literal["weak", "strong"]


class ScalingBenchmark:
    """Measures one configuration with several numbers of workers.

    Args:
        config: What is trained.
        machine: On what.
        counts: Numbers of workers.
        steps: Executions to time of each kind.
        warmup: Executions before that.
        cores_per_worker: fixed, divided, or a number; see the command's help.
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
    ) -> None:
        self._config = config
        self._machine = machine
        self._counts = list(counts)
        self._steps = steps
        self._warmup = warmup
        self._cores = CoreAllocation(machine, cores_per_worker, tuple(counts))
        self._strategy = _strategy_for_several(config)
        self._peak_of_each = 0.0  # GFLOP/s of a core or GPU, known when the first group is done

    def run(
        self,
        modes: Sequence[Mode],
        *,
        compare_steps: int,
        predicted: Sequence[int],
        command: str,
        date: str,
    ) -> Results:
        """Measures everything.

        Args:
            modes: weak, strong or both.
            compare_steps: Steps of the comparison with plain Keras; 0 for none.
            predicted: Numbers of workers to predict.
            command: What was asked for, for the record.
            date: When, in ISO form.
        """
        with scratch_folder() as folder:
            found = {count: self._measure(count, modes, folder) for count in self._counts}
            comparisons = self._compare(compare_steps, folder) if compare_steps else []
            model = self._model(folder) if predicted else None
        first = found[self._counts[0]][modes[0]]
        replicas = 1 if self._machine.gpus else self._counts[0] // first["resolved"]["processes"]
        own = replicas * (self._cores.per_worker(self._counts[0]) or 1)
        self._peak_of_each = first["peak_gflops"] / min(own, self._machine.cores)
        rows = self._rows(found, modes)
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
            denominator=self._denominator(rows),
            peak_gflops=self._peak_of_each,
            rows=tuple(rows),
            comparisons=tuple(comparisons),
            prediction=self._prediction(*model, predicted) if model else None,
            environment=first["environment"] | {"cores": self._machine.cores},
        )

    def _measure(self, workers: int, modes: Sequence[Mode], folder: Path) -> dict[str, Any]:
        # A single worker's batch is the same whichever way it scales.
        kinds = modes if workers > 1 else modes[:1]
        log.info("measuring       %d worker%s", workers, "s" if workers > 1 else "")
        found = []
        for mode in kinds:  # each in processes of its own, whose memory is then its own
            name = f"{workers}-{mode}"
            file = self._write(self._config_for(workers, mode), folder, name)
            arguments = {"count": self._steps, "warmup": self._warmup}
            entry = {"kind": "steps", "config": file, "arguments": arguments}
            found += self._group(workers, [entry], folder / f"group-{name}")
        return dict(zip(modes, found if workers > 1 else found * len(modes), strict=True))

    def _compare(self, steps: int, folder: Path) -> list[Comparison]:
        log.info("measuring       plain Keras and distcnn in turn")
        file = self._write(self._config_for(1, "weak"), folder, "compare")
        entry = {"kind": "compare", "config": file, "arguments": {"repeats": steps}}
        (found,) = self._group(1, [entry], folder / "compare", cores=self._all_cores())
        return [Comparison(**each) for each in found]

    @property
    def _batch_of_one(self) -> int:
        """Images of a step of one worker."""
        train = self._config.train
        return train.global_batch_size or train.batch_size * train.accumulation_steps

    def _model(self, folder: Path) -> tuple[ScalingModel, dict[int, float]]:
        """Measures and fits what predictions are made from.

        What is predicted is mostly workers on several hosts, so here they share no memory.

        Returns:
            The model, and the times in milliseconds of steps by number of workers, weak scaling.
        """
        log.info("measuring       steps by batch, and reductions by size")
        batch = self._batch_of_one
        several = [n for n in self._counts if n > 1 and not self._cores.oversubscribed(n)] or [2]
        cores = self._cores.per_worker(max(several))
        found = {}
        for workers in (1, *several):
            config = self._config_for(workers, "weak")
            apart = dataclasses.replace(config.distribute, shared_memory="off")
            name = f"model-{workers}"
            file = self._write(dataclasses.replace(config, distribute=apart), folder, name)
            sizes = {max(1, batch // 4), max(1, batch // 2), 2 * batch} if workers == 1 else set()
            arguments = {
                "batches": sorted({*sizes, workers * batch}),
                "repeats": max(self._steps, 25),
            }
            entry = {"kind": "model", "config": file, "arguments": arguments}
            (found[workers],) = self._group(workers, [entry], folder / name, cores)
        reduced = found[max(several)]
        model = fit(
            {int(k): v for k, v in found[1]["step_ms"].items()},
            {int(k): v for k, v in reduced["reduction_ms"].items()},
            max(several),
            reduced["bytes_per_step"],
        )
        steps = {
            workers: each["step_ms"][str(workers * batch)]
            for workers, each in found.items()
            if not self._cores.oversubscribed(workers)
        }
        return model, steps

    def _group(
        self, workers: int, entries: list[dict[str, Any]], folder: Path, cores: int | None = None
    ) -> list[Any]:
        own = cores or self._cores.per_worker(workers)
        strategy = self._strategy_for(workers)
        if own is not None and not strategy_of(strategy).joins_processes:
            own = min(own * workers, self._machine.cores)  # they are one process
        plan = {"cores_per_process": own, "entries": entries}
        return run_workers(strategy, workers, plan, folder)

    def _strategy_for(self, workers: int) -> str:
        return self._strategy if workers > 1 else default_strategy(1)

    def _all_cores(self) -> int | None:
        return None if self._machine.gpus else self._machine.cores

    def _config_for(self, workers: int, mode: Mode) -> Config:
        """Returns the configuration of a count: batch, strategy, and endless epochs."""
        config = self._config
        one = self._batch_of_one
        batch = one * workers if mode == "weak" else one
        if batch < workers:
            raise UsageError(
                f"the global batch of {batch} images cannot be divided among {workers} workers; "
                "raise --train.batch_size"
            )
        name = self._strategy_for(workers)
        strategy = strategy_of(name)
        devices = None if strategy.joins_processes or workers == 1 else workers
        enough = 20 * batch * config.train.steps_per_execution
        examples = max(config.data.synthetic_examples, enough)
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

    def _rows(self, found: dict[int, dict[str, Any]], modes: Sequence[Mode]) -> list[Row]:
        rows = []
        for mode in modes:
            alone = self._rate_of_each(found, 1, mode) if 1 in found else None
            for workers in self._counts:
                own = self._rate_of_each(found, workers, mode)
                efficiency = own / alone if alone else None
                rows.append(self._row(found[workers][mode], mode, workers, efficiency))
        return rows

    def _rate_of_each(self, found: dict[int, dict[str, Any]], workers: int, mode: Mode) -> float:
        """Returns the images a second of each core or GPU that the workers were given."""
        return found[workers][mode]["images_per_second"] / self._cores.total(workers)

    def _row(
        self, measured: dict[str, Any], mode: Mode, workers: int, efficiency: float | None
    ) -> Row:
        resolved = measured["resolved"]
        own = {field.name for field in dataclasses.fields(Row)}
        rate = measured["flops_per_image"] * measured["images_per_second"] / 1e9
        present = min(self._cores.total(workers), self._machine.gpus or self._machine.cores)
        return Row(
            **{name: value for name, value in measured.items() if name in own},
            scaling=mode,
            strategy=resolved["strategy"],
            workers=workers,
            cores_per_worker=self._cores.per_worker(workers),
            oversubscribed=self._cores.oversubscribed(workers),
            efficiency=efficiency,
            share_of_peak=rate / present / self._peak_of_each,
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
        alone = next((row for row in rows if row.workers == 1), None)
        if alone is None:
            return "one worker was not measured, so there is no efficiency"
        cores = alone.cores_per_worker
        on = "on a GPU of its own" if cores is None else f"on {cores} core{'s' * (cores > 1)}"
        return (
            f"images a second of each {'GPU' if cores is None else 'core'} / that of one worker "
            f"alone {on} ({alone.images_per_second:.0f} images/s)"
        )

    def _prediction(
        self,
        model: ScalingModel,
        steps: dict[int, float],
        predicted: Sequence[int],
    ) -> Prediction:
        """Returns efficiency by weak scaling at the counts asked for, and at those measured."""
        points = []
        for workers in sorted({*predicted, *steps}):
            batch = self._batch_of_one
            step, measured = model.step_ms(workers, batch), steps.get(workers)
            points.append(
                PredictedPoint(
                    workers=workers,
                    step_ms=step,
                    efficiency=model.efficiency(workers, batch),
                    measured_efficiency=steps[1] / measured if measured else None,
                    error=step / measured - 1 if measured else None,
                )
            )
        return Prediction(
            step_fixed_ms=model.fixed_ms,
            step_ms_per_image=model.per_image_ms,
            latency_ms=model.latency_ms,
            bandwidth_mb_per_s=model.bytes_per_ms / 1e3,
            bytes_per_step=model.bytes_per_step,
            points=tuple(points),
        )


def _strategy_for_several(config: Config) -> str:
    """Returns the strategy for several workers: the one asked for, or the default."""
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
