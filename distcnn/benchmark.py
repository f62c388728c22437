"""The command `python -m distcnn.benchmark`: throughput by number of workers, and its limits."""

import datetime
import logging
import shlex
import signal
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from distcnn.benchmarking.baseline import environment_differences, regressions
from distcnn.benchmarking.comparing import ComparisonPlan
from distcnn.benchmarking.machine import Machine
from distcnn.benchmarking.peers.spec import parse_peers, require_equivalent
from distcnn.benchmarking.report import print_report, write_report
from distcnn.benchmarking.results import Results, read_results
from distcnn.benchmarking.scaling_benchmark import Mode, ScalingBenchmark
from distcnn.cli.command import run_command, write_json
from distcnn.cli.parser import parse_run
from distcnn.config import Config
from distcnn.data.sources import data_set_of
from distcnn.errors import DistcnnError, UsageError

log = logging.getLogger("distcnn")

_OPTIONS: dict[str, dict[str, Any]] = {
    "workers": {
        "type": str,
        "default": "1",
        "help": "Numbers of workers to measure, such as 1,2,4,8.",
    },
    "scaling": {
        "choices": ("weak", "strong", "both"),
        "default": "both",
        "help": "weak: the batch per worker stays constant; strong: the global batch does.",
    },
    "steps": {
        "type": int,
        "default": 40,
        "help": "Executions to time of each variant of the step.",
    },
    "warmup": {"type": int, "default": 5, "help": "Executions before the timed ones."},
    "cores_per_worker": {
        "type": str,
        "default": "fixed",
        "help": "CPU only. fixed: the same for every count, so that the largest count that fits "
        "uses all cores; divided: all cores, divided among the workers of each count; or a number.",
    },
    "link": {
        "type": str,
        "default": None,
        "help": "Speed of the network between workers, such as 1gbit: each worker runs on a host "
        "of its own, a network namespace of this machine. Needs root, ip and tc.",
    },
    "compare": {
        "type": str,
        "nargs": "?",
        "const": "plain",
        "default": None,
        "help": "Also compare with these, in turn: a list of plain (a plain Keras script), torch, "
        "jax; or all that are installed.",
    },
    "compare_steps": {
        "type": int,
        "default": 100,
        "help": "Training steps per side of --compare and --floor, if the budget suffices.",
    },
    "floor": {
        "action": "store_true",
        "help": "Also time the convolutions and products of the step alone, in turn with it.",
    },
    "budget": {
        "type": float,
        "default": 600.0,
        "help": "Seconds for --compare and --floor together; each measures at least one round.",
    },
    "predict": {
        "type": str,
        "default": None,
        "help": "Numbers of workers to predict the efficiency of, such as 8,64,512.",
    },
    "baseline": {
        "type": str,
        "default": None,
        "help": "An earlier results.json; exit with 1 if a number is worse by more than the noise.",
    },
    "json": {"type": str, "default": None, "help": "File for the results."},
}


def main(arguments: Sequence[str]) -> int:
    """Runs a benchmark, reports it and compares it with a baseline.

    Raises:
        UsageError: If a flag is wrong.
        DistcnnError: If a group of workers fails, or a number is worse than the baseline's.
    """
    description = (
        "Measures throughput by number of workers, shows where the time goes, and compares with "
        "plain Keras and other frameworks. Also takes the flags of distcnn.train. Images that "
        "would have to be downloaded are synthetic unless --data.name or --data.dir is given."
    )
    config, options = parse_run("distcnn.benchmark", description, arguments, _OPTIONS)
    if config is None:
        return 0
    config = _without_other_weights(_without_download(config, arguments))
    folder = Path(config.out or f"benchmarks/{config.recipe}")
    counts, predicted = _check_options(options)
    machine = Machine.detect()
    comparisons = _plan_comparisons(config, options, machine)
    baseline = _read_baseline(options["baseline"], folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no worker behind

    benchmark = ScalingBenchmark(
        config,
        machine,
        counts,
        steps=options["steps"],
        warmup=options["warmup"],
        cores_per_worker=options["cores_per_worker"],
        link=options["link"],
    )
    both: tuple[Mode, ...] = ("weak", "strong")
    results = benchmark.run(
        both if options["scaling"] == "both" else (options["scaling"],),
        comparisons=comparisons,
        predicted=predicted,
        command=shlex.join(["python", "-m", "distcnn.benchmark", *arguments]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    print_report(results)
    write_report(results, folder)
    write_json(options["json"], results.to_json())
    sys.stdout.write(f"saved           {folder}\n")
    if baseline is not None:
        _compare_with_baseline(results, baseline, options["baseline"])
    return 0


def _without_download(config: Config, arguments: Sequence[str]) -> Config:
    """Replaces images that would be downloaded by synthetic ones, unless a flag names them."""
    own = config.data.dir is not None or config.data.labels is not None
    chosen = own or any(f.startswith("--data.name") for f in arguments)
    if chosen or not data_set_of(config.data.source).needs_download:
        return config
    return replace(config, data=replace(config.data, name="synthetic"))


def _without_other_weights(config: Config) -> Config:
    """Drops the values that weights begin with, and phases; says that the benchmark does so."""
    given = {
        "init_from": config.init_from,
        "model.weights": None if config.model.weights == "none" else config.model.weights,
        "checkpoint.resume": config.checkpoint.other_run,
    }
    for key, value in given.items():
        if value is not None:
            log.info("weights         random, as fast as those of %s %s", key, value)
    if config.train.phases:
        log.info(
            "phases          not timed apart: all layers are trained, as in a run without them"
        )
    return replace(
        config,
        init_from=None,
        model=replace(config.model, weights="none"),
        checkpoint=replace(config.checkpoint, resume="auto"),
        train=replace(config.train, phases=[]),
    )


def _check_options(options: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Returns the numbers of workers to measure and to predict.

    Raises:
        UsageError: If an option is wrong.
    """
    counts = _parse_counts(options["workers"], "workers")
    predicted = _parse_counts(options["predict"], "predict") if options["predict"] else []
    if predicted and max(counts) < 2:
        raise UsageError("predict needs a measurement of at least 2 workers; add --workers 1,2")
    for name in ("steps", "compare_steps"):
        if options[name] < 5:
            raise UsageError(f"{name} is {options[name]}; expected at least 5")
    return counts, predicted


def _plan_comparisons(config: Config, options: dict[str, Any], machine: Machine) -> ComparisonPlan:
    """Returns what to compare the step with.

    Raises:
        UsageError: If a peer is unknown, not installed, or cannot compute the step.
    """
    if not options["budget"] > 0:
        raise UsageError(f"budget is {options['budget']}; expected a number of seconds above 0")
    peers, missing = parse_peers(options["compare"])
    for line in missing:
        log.info("%s", line)
    require_equivalent(config, peers)
    return ComparisonPlan(
        peers=tuple(peers),
        steps=options["compare_steps"],
        floor=options["floor"],
        seconds=options["budget"],
    )


def _parse_counts(text: str, name: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{name} is {text!r}; expected numbers of workers such as 1,2,4")
    return sorted({int(part) for part in parts})


def _read_baseline(path: str | None, folder: Path) -> Results | None:
    """Reads the baseline and makes sure that the new results will not overwrite it."""
    if path is None:
        return None
    baseline = read_results(Path(path))
    new = folder / "results.json"
    if new.exists() and new.samefile(Path(path, "results.json") if Path(path).is_dir() else path):
        raise UsageError(f"the results would overwrite the baseline {path}; choose another --out")
    return baseline


def _compare_with_baseline(results: Results, baseline: Results, path: str) -> None:
    for difference in environment_differences(results, baseline):
        log.warning("warning: the baseline was measured under other conditions: %s", difference)
    worse = regressions(results, baseline)
    if worse:
        raise DistcnnError(f"slower than {path}: {'; '.join(worse)}")
    sys.stdout.write(f"not slower than {path}\n")


if __name__ == "__main__":
    run_command(main)
