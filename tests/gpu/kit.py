"""The GPU kit: runs the checks, prints each result, and writes the report.

    python -m tests.gpu.kit [--only NAME,...] [--data DIR] [--out DIR] [--list]

`--device cpu` tries the checks themselves without a GPU; `--gpus N` then pretends that there are N.
"""

import argparse
import datetime
import json
import platform
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

from tests.gpu import one_gpu, several_gpus
from tests.gpu.checking import Bench, Check, FailedError, Machine, SkippedError

CHECKS: tuple[Check, ...] = (*one_gpu.CHECKS, *several_gpus.CHECKS)


@dataclass(frozen=True)
class Result:
    """What a check found.

    Attributes:
        name: The check.
        outcome: pass, fail or skip.
        figure: What was measured, or why it failed or was skipped.
        seconds: How long it took.
    """

    name: str
    outcome: str
    figure: str
    seconds: float = 0.0


def main(arguments: Sequence[str]) -> int:
    """Runs the kit.

    Returns:
        The exit code: 1 if a check failed, 2 if a name is unknown, else 0.
    """
    options = _parser().parse_args(arguments)
    names = [check.name for check in CHECKS]
    wanted = options.only.split(",") if options.only else names
    unknown = sorted(set(wanted) - set(names))
    if unknown:
        sys.stderr.write(f"error: there is no check {unknown[0]}; expected some of {names}\n")
        return 2
    if options.list:
        sys.stdout.writelines(f"{check.name:16} {check.claim}\n" for check in CHECKS)
        return 0
    machine = Machine.detect()
    chosen = [check for check in CHECKS if check.name in wanted]
    if options.device == "gpu" and not machine.names:
        for check in chosen:
            _show(Result(check.name, "skip", "there is no GPU"))
        print(f"all {len(chosen)} checks were skipped: nvidia-smi finds no GPU on this machine")
        return 0
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda number, _: sys.exit(128 + number))  # ends what a check runs
    folder = Path(options.out).resolve()
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for check in chosen:
        results.append(_run(check, options, machine, folder))
        _show(results[-1])
        _write(folder, results, options, machine)  # after each, in case the next one hangs
    failed = sum(result.outcome == "fail" for result in results)
    print(f"{failed} of {len(results)} failed; report: {folder / 'report.md'}")
    return int(failed > 0)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", allow_abbrev=False)
    parser.add_argument("--only", help="Names of checks, separated by commas.")
    parser.add_argument("--list", action="store_true", help="Print the names and claims.")
    parser.add_argument("--data", help="Folder with CIFAR-10, for the accuracy of the recipes.")
    parser.add_argument("--out", default="gpu-report", help="Folder for the report.")
    parser.add_argument("--device", choices=("gpu", "cpu"), default="gpu", help=argparse.SUPPRESS)
    parser.add_argument("--gpus", type=int, default=1, help=argparse.SUPPRESS)
    return parser


def _run(check: Check, options: argparse.Namespace, machine: Machine, folder: Path) -> Result:
    on_gpu = options.device == "gpu"
    gpus = len(machine.names) if on_gpu else options.gpus
    if gpus < check.gpus:
        return Result(check.name, "skip", f"needs {check.gpus} GPUs, there is {gpus}")
    own = folder / "work" / f"{check.name}-{time.time_ns()}"
    own.mkdir(parents=True)
    data = None if options.data is None else str(Path(options.data).resolve())
    bench = Bench(machine, own, options.device, gpus, data, quick=not on_gpu)
    start = time.monotonic()
    try:
        outcome, figure = "pass", check.run(bench)
    except SkippedError as reason:
        outcome, figure = "skip", str(reason)
    except FailedError as reason:
        outcome, figure = "fail", str(reason)
    except Exception as error:  # a defect of the check; the others go on
        traceback.print_exc()
        outcome, figure = "fail", f"{type(error).__name__}: {error}"
    finally:
        bench.close()
    return Result(check.name, outcome, figure, time.monotonic() - start)


def _show(result: Result) -> None:
    print(f"{result.outcome:5} {result.name:16} {result.figure}", flush=True)


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _write(
    folder: Path, results: Sequence[Result], options: argparse.Namespace, machine: Machine
) -> None:
    """Writes the report and the results."""
    claims = {check.name: check for check in CHECKS}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="minutes")
    device = ", ".join(machine.names) or "CPU (the checks themselves were tried)"
    versions = ", ".join(f"{name} {_version(name)}" for name in ("tensorflow", "keras", "horovod"))
    lines = [
        "## GPU report",
        "",
        f"- {device}; {machine.memory_mb} MB, driver {machine.driver or 'none'}",
        f"- distcnn {_version('distcnn')}, {versions}, Python {platform.python_version()}",
        f"- {now}, {platform.platform()}",
        "",
        "| check | claim | page | result | figure | s |",
        "|---|---|---|---|---|---|",
        *(
            f"| {each.name} | {claims[each.name].claim} | {claims[each.name].page} "
            f"| {each.outcome} | {each.figure.replace('|', '/')} | {each.seconds:.0f} |"
            for each in results
        ),
        "",
    ]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    content = {
        "machine": asdict(machine),
        "device": options.device,
        "date": now,
        "results": [asdict(each) for each in results],
    }
    (folder / "results.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
