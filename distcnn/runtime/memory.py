"""The memory that this process takes."""

import re
import resource
from pathlib import Path


def peak_bytes() -> int:
    """Returns the most memory that this process has taken at once, in bytes.

    Linux passes the peak of `getrusage` on to what a process starts, so that a small process
    started by a large one would have the large one's.
    """
    try:
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.M)
    except OSError:
        found = None
    if found is not None:
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
