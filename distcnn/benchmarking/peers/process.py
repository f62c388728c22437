"""The process of one side: `python -m distcnn.benchmarking.peers.process TASK`.

It builds its side, then waits for a number of steps on its standard input, trains them, and answers
with their seconds. Each answer is a line of JSON: `say` (progress), `ready`, or `seconds`.
"""

import gc
import importlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from distcnn.benchmarking.peers.side import Side, Task, Trained
from distcnn.benchmarking.peers.spec import FRAMEWORKS
from distcnn.benchmarking.progress import Budget
from distcnn.benchmarking.worker import pin
from distcnn.cli.command import run_command
from distcnn.runtime.files import parse_json

_MODULES = {
    "distcnn": "distcnn.benchmarking.peers.distcnn_side",
    "plain": "distcnn.benchmarking.peers.plain_side",
    "torch": "distcnn.benchmarking.peers.torch_side",
    "jax": "distcnn.benchmarking.peers.jax_side",
}
"""The module of each side, imported in its own process only."""

_ENVIRONMENT = {
    "TF_FORCE_GPU_ALLOW_GROWTH": "true",  # the sides share a GPU
    "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    "TORCHINDUCTOR_COMPILE_THREADS": "1",  # no pool of processes beside the one that is timed
}


def main(arguments: Sequence[str]) -> int:
    """Builds a side and serves turns until the standard input ends.

    Args:
        arguments: The file of the task.
    """
    values = parse_json(Path(arguments[0]).read_text())
    os.environ.update(_ENVIRONMENT, OMP_NUM_THREADS=str(values["cores"]))
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a library prints must not look like an answer

    def answer(**content: Any) -> None:
        answers.write(json.dumps(content) + "\n")

    pin(values["cores"], 0)
    task = Task(**{**values, "folder": Path(values["folder"]), "budget": Budget(values["budget"])})
    if task.side in FRAMEWORKS and task.spec().gpu is None:
        os.environ["JAX_PLATFORMS"] = "cpu"
    side: Side = importlib.import_module(_MODULES[task.side]).build(
        task, lambda text: answer(say=text)
    )
    answer(
        ready={
            "title": side.title,
            "precision": side.precision,
            "parameters": side.parameters,
            "settings": side.settings,
        }
    )
    gc.collect()
    gc.disable()
    serve(side, sys.stdin, answer)
    return 0


def serve(side: Trained, commands: Iterable[str], answer: Callable[..., None]) -> None:
    """Trains as many steps as each line asks for.

    Args:
        side: The side.
        commands: Lines with a number of steps.
        answer: Takes the seconds of the steps, the loss of the last one, and how many cores this
            process kept busy while it waited.
    """
    wall, cpu = time.perf_counter(), time.process_time()
    for line in commands:
        waited = time.perf_counter() - wall
        idle_cores = (time.process_time() - cpu) / max(waited, 1e-9)
        seconds = side.run(int(line))
        answer(seconds=seconds, loss=side.loss(), waited=waited, idle_cores=idle_cores)
        wall, cpu = time.perf_counter(), time.process_time()


if __name__ == "__main__":
    run_command(main)
