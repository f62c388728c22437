"""The doctor's proof: the first steps of a script on one worker and on several, compared."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from distcnn.distribute.launching import horovodrun, one_process, unplaced_environment
from distcnn.errors import DistcnnError
from distcnn.runtime.finding import Finding

STEPS = 5
"""Steps that are compared."""

TOLERANCES = {"float64": 1e-8, "float32": 1e-3}
"""Largest difference, relative to the largest value, that rounding explains."""


def prove_lockstep(workers: int, script: Sequence[str]) -> Iterator[Finding]:
    """Trains the first steps of a script on one worker and on several, and compares them.

    They compute in float64 if the script can, so that rounding does not hide or cause a difference.

    Args:
        workers: Number of Horovod workers.
        script: The script and its arguments.

    Yields:
        A finding for every variable and metric that differs, and the verdict.

    Raises:
        DistcnnError: If the script fails on one worker.
    """
    with tempfile.TemporaryDirectory() as folder:
        alone, float_type, error = Path(folder, "alone.npz"), "", ""
        for float_type in TOLERANCES:
            error = _train(1, float_type, "own", alone, script)
            if not error:
                break
        if error or not alone.exists():
            reason = error or "it ended without calling fit"
            raise DistcnnError(f"{script[0]} fails on one worker: {reason}")
        differences: dict[str, dict[str, float]] = {}
        for rows in ("own", "all"):
            out = Path(folder, f"{rows}.npz")
            error = _train(workers, float_type, rows, out, script)
            if error:
                yield Finding("lockstep", "error", f"{workers} workers fail: {error}")
                return
            differences[rows] = _differences(alone, out)
            if max(differences[rows].values()) <= TOLERANCES[float_type]:
                break
        yield from _verdict(differences, workers, float_type)


def _train(workers: int, float_type: str, rows: str, out: Path, script: Sequence[str]) -> str:
    """Returns the last line of the error, or an empty string if there is none."""
    worker = ["-m", "distcnn.scripting.lockstep_worker", str(out), float_type, rows, *script]
    environment = {
        **unplaced_environment(),
        "KERAS_MAX_EPOCHS": "1",
        "KERAS_MAX_STEPS_PER_EPOCH": str(STEPS),
        "PYTHONHASHSEED": "0",
    }
    launch = one_process if workers == 1 else horovodrun
    ((line, variables),) = launch(workers, [sys.executable, *worker], environment)
    done = subprocess.run(
        line, env={**os.environ, **variables}, capture_output=True, text=True, check=False
    )
    if done.returncode == 0:
        return ""
    lines = [text for text in done.stderr.splitlines() if text.strip()]
    told = [text for text in lines if "error: " in text or "Error: " in text]
    return (told or lines or [f"exit code {done.returncode}"])[-1].strip()


def _differences(alone: Path, out: Path) -> dict[str, float]:
    """Returns the difference of each variable and metric, relative to its largest value."""
    found = {}
    with np.load(alone) as one, np.load(out) as other:
        for name, values in one.items():
            if values.dtype.kind == "f":
                scale = max(1e-6, float(np.abs(values).max(initial=0.0)))
                found[name] = float(np.abs(values - other[name]).max(initial=0.0)) / scale
    return found


def _verdict(
    differences: dict[str, dict[str, float]], workers: int, float_type: str
) -> Iterator[Finding]:
    """Yields what differs as the script is, and why."""
    tolerance = TOLERANCES[float_type]
    own = differences["own"]
    summary = f"{STEPS} steps in {float_type} on 1 and on {workers} workers"
    wrong = [name for name, difference in own.items() if difference > tolerance]
    if not wrong:
        text = f"{summary}: largest difference {max(own.values()):.1e}"
        yield Finding("lockstep", "ok", text)
        return
    for name in wrong:
        yield Finding(name, "warning", f"differs by {own[name]:.1e} of its largest value")
    summary = f"{summary}: {len(wrong)} of {len(own)} differ, first {wrong[0]}"
    if max(differences["all"].values()) <= tolerance:
        yield Finding(
            "lockstep",
            "warning",
            f"{summary}, since batch normalisation uses each worker's own rows",
            "--distribute.sync_batchnorm true makes them equal",
        )
        return
    yield Finding(
        "lockstep",
        "error",
        summary,
        "a loss, metric or layer mixes the rows of a batch or sums over them, or random numbers "
        "are drawn outside Keras; see docs/scripts.md",
    )
