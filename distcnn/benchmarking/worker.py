"""One process of a benchmark's group: `python -m distcnn.benchmarking.worker PLAN RESULTS`.

A plan names the cores of each process and a list of entries, each a kind of measurement with the
file of its configuration; rank 0 writes what was found, entry by entry.
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


def pin(cores: int | None, local_rank: int) -> None:
    """Binds this process to cores of its own; the ranks go round if there are too few.

    Args:
        cores: Cores of each process, or None to leave it free.
        local_rank: Its number among the processes of this host.
    """
    if cores is None:
        return
    present = sorted(os.sched_getaffinity(0))
    first = local_rank * cores
    os.sched_setaffinity(0, {present[(first + i) % len(present)] for i in range(cores)})


def main(arguments: Sequence[str]) -> int:
    """Carries out a plan.

    Args:
        arguments: File of the plan, file for the results.
    """
    plan_file, results_file = arguments
    plan = json.loads(Path(plan_file).read_text())
    cluster = find_cluster(os.environ)
    pin(plan["cores_per_process"], cluster.local_rank)
    bound = plan["cores_per_process"] is not None
    import_tensorflow()
    from distcnn.benchmarking import measurements as measurements
    from distcnn.distribute.context import join_run
    from distcnn.training.build import build_setup

    kinds: dict[str, Callable[..., Any]] = {
        "steps": measurements.steps,
        "compare": measurements.comparison,
        "model": measurements.scaling,
    }
    found = []
    for entry in plan["entries"]:
        config = parse_config("distcnn.benchmark", "", ["--recipe", entry["config"]])
        assert config is not None
        setup = build_setup(config, join_run(config, cluster, cores_are_bound=bound))
        found.append(kinds[entry["kind"]](setup, **entry["arguments"]))
    if cluster.is_chief:
        Path(results_file).write_text(json.dumps(found))
    return 0


if __name__ == "__main__":
    run_command(main)
