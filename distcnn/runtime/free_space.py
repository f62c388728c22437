"""Free memory and disk space for decoded images."""

import os
import shutil
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")


def available_memory() -> float:
    """Returns the bytes of memory that can be used without swapping.

    This is the smaller of what the kernel reports as available and what the limit of this container
    (cgroup v2) leaves.
    """
    return min(_system_memory(), _container_memory())


def _system_memory() -> int:
    if _MEMINFO.exists():
        for line in _MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_memory() -> float:
    try:
        limit = (_CGROUP / "memory.max").read_text().strip()
        used = int((_CGROUP / "memory.current").read_text())
    except OSError:
        return float("inf")
    return float("inf") if limit == "max" else max(0, int(limit) - used)


def writable_disk(folder: Path) -> int:
    """Returns the free bytes on the disk of `folder`, which may be missing; 0 if read-only."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        return 0
    return shutil.disk_usage(existing).free
