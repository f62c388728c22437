"""The command `python -m distcnn.benchmark`: throughput by number of workers, and why."""

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
from distcnn.benchmarking.machine import Machine
from distcnn.benchmarking.report import show, write_all
from distcnn.benchmarking.results import Results, read_results
from distcnn.benchmarking.scaling_benchmark import Mode, ScalingBenchmark
from distcnn.cli.command import run_command, write_json
from distcnn.cli.parser import parse_run
from distcnn.errors import DistcnnError, UsageError

log = logging.getLogger("distcnn")

_OWN: dict[str, dict[str, Any]] = {
    "workers": {
        "type": str,
        "default": "1",
        "help": "Numbers of workers to measure, such as 1,2,4,8.",
    },
    "scaling": {
        "choices": ("weak", "strong", "both"),
        "default": "both",
        "help": "weak: the batch of each worker stays the same; strong: the global batch does.",
    },
    "steps": {"type": int, "default": 40, "help": "Executions to time of each kind."},
    "warmup": {"type": int, "default": 5, "help": "Executions before that."},
    "cores_per_worker": {
        "type": str,
        "default": "fixed",
        "help": "CPU only. fixed: as many for each as the largest count that fits leaves; divided: "
        "all cores among the workers of each count; or a number.",
    },
    "compare": {
        "choices": ("plain",),
        "default": None,
        "help": "plain: also run the plain Keras script, batch by batch in turn.",
    },
    "compare_steps": {
        "type": int,
        "default": 100,
        "help": "Training steps of each side of --compare.",
    },
    "predict": {
        "type": str,
        "default": None,
        "help": "Numbers of workers whose efficiency to predict, such as 8,64,512.",
    },
    "baseline": {
        "type": str,
        "default": None,
        "help": "An earlier results.json; exit with 1 if a number is worse, beyond the noise.",
    },
    "json": {"type": str, "default": None, "help": "File for the results."},
}


def main(arguments: Sequence[str]) -> int:
    """Measures as the command line says.

    Args:
        arguments: The command line, without the program.

    Returns:
        0.

    Raises:
        DistcnnError: If a group of workers fails, or a number is worse than the baseline's.
    """
    description = (
        "Measures throughput by number of workers, where the time goes, and against plain Keras. "
        "Takes the flags of distcnn.train too; images that it would have to download are synthetic "
        "unless --data.name or --data.dir asks for them."
    )
    config, options = parse_run("distcnn.benchmark", description, arguments, _OWN)
    if config is None:
        return 0
    asked = any(flag.startswith(("--data.name", "--data.dir")) for flag in arguments)
    if config.data.name in ("cifar10", "cifar100") and not asked:
        config = replace(config, data=replace(config.data, name="synthetic"))
    folder = Path(config.out or f"benchmarks/{config.recipe}")
    counts = _counts(options["workers"], "workers")
    predicted = _counts(options["predict"], "predict") if options["predict"] else []
    if predicted and max(counts) < 2:
        raise UsageError("predict needs the reduction of at least 2 workers; add --workers 1,2")
    for name in ("steps", "compare_steps"):
        if options[name] < 5:
            raise UsageError(f"{name} is {options[name]}; expected at least 5")
    old = _baseline(options["baseline"], folder)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that no worker is left behind

    campaign = ScalingBenchmark(
        config,
        Machine.find(),
        counts,
        steps=options["steps"],
        warmup=options["warmup"],
        cores_per_worker=options["cores_per_worker"],
    )
    both: tuple[Mode, ...] = ("weak", "strong")
    modes = both if options["scaling"] == "both" else (options["scaling"],)
    results = campaign.run(
        modes,
        compare_steps=options["compare_steps"] if options["compare"] else 0,
        predicted=predicted,
        command=shlex.join(["python", "-m", "distcnn.benchmark", *arguments]),
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    show(results)
    write_all(results, folder)
    write_json(options["json"], results.to_json())
    sys.stdout.write(f"saved           {folder}\n")
    if old is not None:
        _compare_to(old, results, options["baseline"])
    return 0


def _counts(text: str, name: str) -> list[int]:
    parts = text.split(",")
    if not all(part.strip().isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{name} is {text!r}; expected numbers of workers such as 1,2,4")
    return sorted({int(part) for part in parts})


def _baseline(path: str | None, folder: Path) -> Results | None:
    """Reads the baseline, which the new results must not replace."""
    if path is None:
        return None
    old = read_results(Path(path))
    new = folder / "results.json"
    if new.exists() and new.samefile(Path(path, "results.json") if Path(path).is_dir() else path):
        raise UsageError(f"the results would replace the baseline {path}; give another --out")
    return old


def _compare_to(old: Results, new: Results, path: str) -> None:
    for difference in environment_differences(new, old):
        log.warning("warning: the baseline is from elsewhere: %s", difference)
    worse = regressions(new, old)
    if worse:
        raise DistcnnError(f"slower than {path}: {'; '.join(worse)}")
    sys.stdout.write(f"not slower than {path}\n")


if __name__ == "__main__":
    run_command(main)
