"""The cores and GPUs that trials side by side have for themselves."""

import os
from dataclasses import dataclass, field
from typing import TypeVar

from distcnn.errors import UsageError
from distcnn.runtime.nvidia import nvidia_devices

_T = TypeVar("_T")


@dataclass(frozen=True)
class Slot:
    """What one trial at a time runs on.

    Attributes:
        cores: Its cores.
        environment: Variables that limit it to its GPUs.
    """

    cores: tuple[int, ...]
    environment: dict[str, str] = field(default_factory=dict)


def divide_host(jobs: int, workers: int = 1) -> list[Slot]:
    """Divides this host's cores and GPUs among trials side by side.

    Where there are fewer of them than trials, several trials share one.

    Args:
        jobs: Trials side by side.
        workers: Workers of each trial. Where there are GPUs, each worker needs one for itself,
            unless it is the only one of its trial.

    Raises:
        UsageError: If there are too few GPUs for the workers.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpus = _visible_gpus()
    if workers > 1 and 0 < len(gpus) < jobs * workers:
        raise UsageError(
            f"jobs is {jobs} and workers is {workers}, but there are only {len(gpus)} GPUs; "
            f"expected one for each of the {jobs * workers} workers; lower one of them, or set "
            "CUDA_VISIBLE_DEVICES= to train on the CPU"
        )
    return [
        Slot(tuple(_part(cores, number, jobs)), _gpu_variables(gpus, number, jobs))
        for number in range(jobs)
    ]


def _gpu_variables(gpus: list[str], number: int, jobs: int) -> dict[str, str]:
    if not gpus:
        return {}
    variables = {"CUDA_VISIBLE_DEVICES": ",".join(_part(gpus, number, jobs))}
    if len(gpus) < jobs:  # without this, the first trial takes the memory of the whole GPU
        variables["TF_FORCE_GPU_ALLOW_GROWTH"] = "true"
    return variables


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip() not in ("", "-1")]
    return nvidia_devices()


def _part(things: list[_T], number: int, parts: int) -> list[_T]:
    if len(things) < parts:
        return [things[number % len(things)]]
    first, last = (place * len(things) // parts for place in (number, number + 1))
    return things[first:last]
