"""NVIDIA's GPUs as the driver lists them, without TensorFlow."""

import os
import re
import shutil
import subprocess

_GPU = re.compile(r"GPU (\d+):")
_INSTANCE = re.compile(r"\s+MIG .*\(UUID: (MIG-[^)]+)\)")


def count_nvidia_gpus() -> int:
    """Returns how many GPUs `nvidia-smi` lists; 0 where it is not installed."""
    return sum(_GPU.match(line) is not None for line in _listing())


def count_visible_gpus() -> int:
    """Returns how many of them `CUDA_VISIBLE_DEVICES` leaves visible: all if it is unset."""
    count = count_nvidia_gpus()
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None or count == 0:
        return count
    return sum(name.strip() not in ("", "-1") for name in listed.split(","))


def nvidia_devices() -> list[str]:
    """Returns what `CUDA_VISIBLE_DEVICES` can name: the number of each GPU.

    A GPU that is divided (MIG) is represented by the UUIDs of its instances instead. A process can
    use only one of these.
    """
    devices: list[str] = []
    for line in _listing():
        gpu, instance = _GPU.match(line), _INSTANCE.match(line)
        if gpu is not None:
            devices.append(gpu[1])
        elif instance is not None:
            if devices and devices[-1].isdigit():  # the first instance replaces its GPU
                devices.pop()
            devices.append(instance[1])
    return devices


def _listing() -> list[str]:
    if shutil.which("nvidia-smi") is None:
        return []
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return done.stdout.splitlines()
