"""NVIDIA's GPUs as the driver lists them, without TensorFlow."""

import shutil
import subprocess


def count_nvidia_gpus() -> int:
    """Returns how many GPUs `nvidia-smi` lists; 0 where it is not installed."""
    if shutil.which("nvidia-smi") is None:
        return 0
    done = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False)
    return sum(line.startswith("GPU") for line in done.stdout.splitlines())
