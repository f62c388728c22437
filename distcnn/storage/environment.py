"""The environment of a run: versions, hardware, command."""

import datetime
import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from distcnn.version import __version__

PACKAGES = ("tensorflow", "keras", "numpy", "tensorboard", "scikit-learn", "pillow")


def describe_environment(gpu: str | None, resolved: dict[str, Any]) -> dict[str, Any]:
    """Returns the content of `environment.json`.

    Args:
        gpu: Name of the GPU, or None on a CPU.
        resolved: The resolved settings of the run.
    """
    return {
        "distcnn": __version__,
        "python": platform.python_version(),
        "packages": {name: metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "host": platform.node(),
        "cpu": _cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "gpu": gpu,
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "resolved": resolved,
    }


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()
