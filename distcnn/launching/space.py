"""Whether a run directory can be written, which restarting does not mend."""

import contextlib
import os
import shutil
from pathlib import Path

_PROBE = ".probe"
_PROBE_BYTES = 4096


def why_not_writable(folder: Path) -> str:
    """Returns why a run cannot save, as one line; nothing if it can.

    Args:
        folder: The launcher's folder in the run directory.
    """
    run, probe = folder.parent, folder / _PROBE
    try:
        needed, free = _checkpoint_bytes(run), shutil.disk_usage(folder).free
        if free < needed:
            return (
                f"the disk of {run} is full: {free} bytes are free, and a checkpoint takes {needed}"
            )
        try:
            descriptor = os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            try:
                os.write(descriptor, bytes(_PROBE_BYTES))
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        finally:
            with contextlib.suppress(OSError):
                probe.unlink()
    except OSError as error:
        return f"{run} cannot be written: {error.strerror}"
    return ""


def _checkpoint_bytes(run: Path) -> int:
    """Returns the size of the largest checkpoint; 0 if there is none."""
    files = (run / "checkpoints").glob("step-*")
    return max((path.stat().st_size for path in files), default=0)
