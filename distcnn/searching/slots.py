"""The cores and GPUs that trials side by side have for themselves."""

import os
from dataclasses import dataclass, field
from typing import TypeVar

from distcnn.runtime.nvidia import count_nvidia_gpus

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


def divide_host(jobs: int) -> list[Slot]:
    """Divides this host's cores and GPUs among trials side by side.

    Where there are fewer of them than trials, several trials share one.

    Args:
        jobs: Trials side by side.
    """
    cores = sorted(os.sched_getaffinity(0))
    gpus = _visible_gpus()
    return [
        Slot(
            tuple(_part(cores, number, jobs)),
            {"CUDA_VISIBLE_DEVICES": ",".join(_part(gpus, number, jobs))} if gpus else {},
        )
        for number in range(jobs)
    ]


def _visible_gpus() -> list[str]:
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is not None:
        return [name for name in listed.split(",") if name.strip()]
    return [str(index) for index in range(count_nvidia_gpus())]


def _part(things: list[_T], number: int, parts: int) -> list[_T]:
    if len(things) < parts:
        return [things[number % len(things)]]
    first, last = (place * len(things) // parts for place in (number, number + 1))
    return things[first:last]
