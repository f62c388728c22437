"""One process of a benchmark: `python -m distcnn.benchmarking.worker PLAN RESULTS`.

A plan holds the number of cores per process and a list of entries: the kind of a measurement, its
configuration file and its arguments. Rank 0 writes the measurements, one for each entry.
"""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from distcnn.cli.command import run_command
from distcnn.cli.parser import parse_config
from distcnn.cli.startup import import_tensorflow
from distcnn.runtime.cluster import find_cluster
from distcnn.runtime.files import parse_json


def pin(cores: int | None, rank: int) -> None:
    """Pins this process to its own cores; ranks share cores, in turn, if there are too few.

    Args:
        cores: Number of cores per process, or None for no pinning.
        rank: Number of this process among those of this machine.
    """
    if cores is None:
        return
    available = sorted(os.sched_getaffinity(0))
    first = rank * cores
    os.sched_setaffinity(0, {available[(first + i) % len(available)] for i in range(cores)})


def main(arguments: Sequence[str]) -> int:
    """Runs a plan.

    Args:
        arguments: The plan's file and the file for the results.
    """
    plan_file, results_file = arguments
    plan = parse_json(Path(plan_file).read_text())
    cluster = find_cluster(os.environ)
    pin(plan["cores_per_process"], cluster.rank)  # all hosts are this machine
    bound = plan["cores_per_process"] is not None
    import_tensorflow()
    from distcnn.benchmarking import measurements
    from distcnn.benchmarking.batch_memory import measure_batch
    from distcnn.distribute.context import join_run
    from distcnn.training.build import build_setup

    kinds: dict[str, Callable[..., Any]] = {
        "steps": measurements.steps,
        "compare": measurements.comparison,
        "floor": measurements.floor,
        "model": measurements.scaling,
        "batch": measure_batch,
    }
    results = []
    for entry in plan["entries"]:
        config = parse_config("distcnn.benchmark", "", ["--recipe", entry["config"]])
        assert config is not None
        setup = build_setup(config, join_run(config, cluster, cores_are_bound=bound))
        results.append(kinds[entry["kind"]](setup, **entry["arguments"]))
    if cluster.is_chief:
        Path(results_file).write_text(json.dumps(results))
    return 0


if __name__ == "__main__":
    run_command(main)
