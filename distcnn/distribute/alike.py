"""Whether all processes compute the same bits of the same numbers."""

import hashlib
import os
import platform
from pathlib import Path

import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend

_CPU = ("vendor_id", "model name", "flags", "CPU implementer", "CPU part", "Features")
_VARIABLES = ("TF_ENABLE_ONEDNN", "ONEDNN", "DNNL", "OMP_NUM_THREADS", "XLA_FLAGS")


def are_alike(backend: Backend) -> bool:
    """Returns whether matrix products have the same bits in every process; called in all together.

    They depend on the instructions of the CPU, on the number of threads, and on the library.
    """
    digest = hashlib.sha256(_description().encode()).digest()
    numbers = backend.gather(np.array([float(int.from_bytes(digest[:6], "big"))]))
    return bool((numbers == numbers[0]).all())


def _description() -> str:
    parts = [platform.machine(), tf.__version__, str(len(os.sched_getaffinity(0)))]
    parts.append(str(tf.config.threading.get_intra_op_parallelism_threads()))
    parts.append(str(len(tf.config.get_visible_devices("GPU"))))
    parts += sorted(f"{k}={v}" for k, v in os.environ.items() if k.startswith(_VARIABLES))
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else [platform.processor()]
    parts += sorted({line for line in lines if line.startswith(_CPU)})
    return "\n".join(parts)
