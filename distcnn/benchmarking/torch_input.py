"""torchvision's input pipeline for `input_peers`; run by an interpreter that has PyTorch.

A program of its own that needs nothing of distcnn: `python torch_input.py DIR SIDE BATCH WORKERS`.
It reads seconds from stdin, a number a line, and answers each by images per second and seconds of
CPU time per image.
"""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def _batches(folder: str, side: int, batch: int, workers: int) -> Iterator[Any]:
    # distcnn, whose package this file lies in, does not depend on PyTorch.
    import torch
    from torchvision import datasets, transforms  # type: ignore[import-not-found]

    torch.set_num_threads(1)
    steps = [
        transforms.RandomResizedCrop(side),
        transforms.RandomHorizontalFlip(),
        transforms.PILToTensor(),
    ]
    images = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = torch.utils.data.DataLoader(
        images, batch, shuffle=True, num_workers=workers, persistent_workers=True
    )
    while True:
        for pixels, _ in loader:
            yield pixels


def _cpu_seconds() -> float:
    """Returns the CPU time of this process and the workers of its loader."""
    ticks = 0
    for worker in multiprocessing.active_children():
        fields = Path(f"/proc/{worker.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def _main(folder: str, *numbers: str) -> None:
    side, batch, workers = map(int, numbers)
    batches = _batches(folder, side, batch, workers)
    next(batches)
    print("ready", flush=True)
    for line in sys.stdin:
        for _ in range(4 * workers):  # what was loaded before the clock starts must not count
            next(batches)
        images, start, used = 0, time.perf_counter(), _cpu_seconds()
        while (elapsed := time.perf_counter() - start) < float(line):
            images += len(next(batches))
        print(images / elapsed, (_cpu_seconds() - used) / images, flush=True)


if __name__ == "__main__":
    _main(*sys.argv[1:])
