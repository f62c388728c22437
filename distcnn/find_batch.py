"""The command `python -m distcnn.find_batch`: finds the largest batch that fits into memory."""

import logging
import math
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any

from distcnn.benchmarking.machine import Machine
from distcnn.benchmarking.process_groups import scratch_folder
from distcnn.cli.command import require_at_least_one, run_command, write_json
from distcnn.cli.outputs import require_writable
from distcnn.cli.parser import parse_run
from distcnn.config import Config
from distcnn.errors import DistcnnError, UsageError
from distcnn.runtime.cluster import find_cluster
from distcnn.runtime.free_space import available_memory
from distcnn.tuning.batch_trials import BatchTrials
from distcnn.tuning.largest_batch import Fit, fast_enough, find_largest, largest

log = logging.getLogger("distcnn")

_USED_FRACTION = 0.9
"""Fraction of the free memory that workers may take by default."""

_OPTIONS: dict[str, dict[str, Any]] = {
    "low": {
        "type": int,
        "default": None,
        "help": "The first batch per worker. Default: train.batch_size.",
    },
    "high": {
        "type": int,
        "default": None,
        "help": "The largest batch per worker to try. Default: all training images.",
    },
    "workers": {"type": int, "default": 1, "help": "Workers on this host; all must fit."},
    "limit": {
        "type": float,
        "default": None,
        "help": "Memory that a worker may take, in GB: of its GPU, or of its process. Default: the "
        "GPU's; without a GPU, 90 %% of the free memory, divided among the workers.",
    },
    "bisections": {
        "type": int,
        "default": 3,
        "help": "Sizes to try between the largest that fits and the smallest that does not.",
    },
    "seconds": {"type": float, "default": 2.0, "help": "How long to train at each size."},
    "json": {"type": str, "default": None, "help": "JSON file for what each size took."},
}


def main(arguments: Sequence[str]) -> int:
    """Tries batch sizes, each in processes of its own, and prints the largest that fits.

    Raises:
        UsageError: If a flag is wrong.
        DistcnnError: If no size fits, or training fails for another reason.
    """
    description = (
        "Finds the largest batch per worker that fits into memory, and the speed of each size. "
        "Takes the flags of distcnn.train; leaves no run directory."
    )
    config, options = parse_run("distcnn.find_batch", description, arguments, _OPTIONS)
    if config is None:
        return 0
    _check(config, options)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leaves no worker behind
    limit_mb = _limit_mb(options)
    low = options["low"] or config.train.batch_size
    log.info("memory          %s per worker", _shown(limit_mb))
    with scratch_folder() as folder:
        trials = BatchTrials(config, options["workers"], limit_mb, options["seconds"], folder)

        def measure(size: int) -> Fit | None:
            fit = trials.measure(size)
            log.info("batch %9d %s", size, "does not fit" if fit is None else _line(fit))
            return fit

        tried = find_largest(measure, low, options["high"], options["bisections"])
    best = largest(tried)
    if best is None:
        raise DistcnnError(
            f"a batch of {min(tried)} images per worker does not fit into {_shown(limit_mb)}; "
            "lower --low, raise --limit, or use a smaller model"
        )
    _report(tried, options, config)
    return 0


def _check(config: Config, options: dict[str, Any]) -> None:
    """Checks the command's own flags, and those that would have no effect."""
    if find_cluster(os.environ).size > 1:
        raise UsageError(
            "find_batch starts its own workers, but a launcher has started several of it; start it "
            "once, with --workers N"
        )
    for name in ("low", "high"):
        if options[name] is not None:
            require_at_least_one(options, name)
    require_at_least_one(options, "workers")
    if options["bisections"] < 0:
        raise UsageError(f"bisections is {options['bisections']}; expected at least 0")
    low = options["low"] or config.train.batch_size
    if options["high"] is not None and options["high"] < low:
        raise UsageError(f"high is {options['high']}; expected at least low, {low}")
    for name in ("limit", "seconds"):
        if options[name] is not None and not options[name] > 0:
            raise UsageError(f"{name} is {options[name]:g}; expected more than 0")
    unused = {
        "out": config.out,
        "data.factory": config.data.factory,
        "checkpoint.resume": config.checkpoint.other_run,
    }
    for key, value in unused.items():
        if value is not None:
            raise UsageError(f"{key} is {value}, which does not apply to find_batch; drop --{key}")
    require_writable("--json", options["json"])


def _limit_mb(options: dict[str, Any]) -> float:
    """Returns how much memory a worker may take, in MB."""
    if options["limit"] is not None:
        return float(options["limit"]) * 1e3
    if Machine.detect().gpus:
        return math.inf  # TensorFlow reports when the GPU has no more
    return _USED_FRACTION * available_memory() / options["workers"] / 1e6


def _shown(limit_mb: float) -> str:
    return "all of the GPU" if math.isinf(limit_mb) else f"{limit_mb / 1e3:.1f} GB"


def _line(fit: Fit) -> str:
    return f"{fit.images_per_second:9.0f} images/s {fit.peak_memory_mb:9.0f} MB"


def _report(tried: dict[int, Fit | None], options: dict[str, Any], config: Config) -> None:
    """Prints the result, and writes the file that was asked for."""
    best, enough = largest(tried), fast_enough(tried)
    assert best is not None
    images = options["workers"] * config.train.accumulation_steps * best
    bounded = "" if None in tried.values() else "; larger ones were not tried"
    print(f"largest         {best} images per worker, {images} per step{bounded}")
    print(f"fast enough     {enough} images per worker: larger batches are hardly faster")
    write_json(
        options["json"],
        {
            "largest": best,
            "fast_enough": enough,
            "workers": options["workers"],
            "sizes": [
                {
                    "batch": size,
                    "fits": fit is not None,
                    "images_per_second": fit and fit.images_per_second,
                    "peak_memory_mb": fit and fit.peak_memory_mb,
                }
                for size, fit in sorted(tried.items())
            ],
        },
    )


if __name__ == "__main__":
    run_command(main)
