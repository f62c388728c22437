"""Compares what scripts have computed on any number of workers with what plain Python computes.

    python -m tests.scripting.comparing [--groups GROUP...] [SCRIPT...]

runs the scripts of this folder plainly, in a session of one worker, on 2 and 3 Horovod processes,
on 2 processes of multi_worker and on 2 mirrored devices, and prints the largest difference of each.
"""

import argparse
import json
import pickle
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tests.lockstep.groups import start_group

SCRIPTS = Path(__file__).parent / "scripts"

GROUPS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "plain": ("alone", 1, {}),
    "one": ("alone", 1, {"strategy": "one_device"}),
    "horovod-2": ("horovod", 2, {"strategy": "horovod"}),
    "horovod-3": ("horovod", 3, {"strategy": "horovod"}),
    "multi_worker-2": ("multi_worker", 2, {"strategy": "multi_worker"}),
    "mirrored-2": ("mirrored", 2, {"strategy": "mirrored", "devices": 2}),
}
"""Groups of workers: what starts them, how many, and the section `distribute`."""

REFUSED = {
    ("own_loop", "mirrored"): "has a training loop of its own",
    ("own_loop", "multi_worker"): "has a training loop of its own",
    ("optimizer_features", "mirrored"): "the optimizer accumulates gradients",
    ("optimizer_features", "multi_worker"): "the optimizer accumulates gradients",
}
"""What cannot run in lockstep, and how that is said."""

TOLERANCES = {"float16": 2e-3}
"""Largest relative difference allowed, where rounding leaves more than 1e-5."""


def all_scripts() -> list[str]:
    """Returns the names of all scripts."""
    return sorted(path.stem for path in SCRIPTS.glob("*.py"))


def run_scripts(
    group: str, scripts: Sequence[str], folder: Path
) -> dict[str, list[dict[str, Any]]]:
    """Runs scripts in one group of workers.

    Args:
        group: Which one of `GROUPS`.
        scripts: Names of the scripts, or NAME:FAULT; see `tests.scripting.worker`.
        folder: An empty folder.

    Returns:
        What each script has computed, in each process.
    """
    kind, size, options = GROUPS[group]
    how = "plain" if group == "plain" else "session"
    plan = json.dumps({"how": how, "distribute": options, "scripts": scripts})
    arguments = ["-m", "tests.scripting.worker", str(folder), plan]
    started = start_group(kind, size, arguments, folder)
    codes = started.wait(900)
    assert not any(codes), started.output()
    found: dict[str, list[dict[str, Any]]] = {}
    for name in scripts:
        files = sorted(folder.glob(f"{name}-*.pickle"))
        found[name] = [pickle.loads(file.read_bytes()) for file in files]
    return found


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _leaves(part, f"{path}/{key}")
    elif isinstance(value, list | tuple):
        for index, part in enumerate(value):
            yield from _leaves(part, f"{path}/{index}")
    else:
        yield path, np.asarray(value, np.float64)


def largest_difference(expected: dict[str, Any], received: dict[str, Any]) -> tuple[float, str]:
    """Returns the largest relative difference of any array, and which array it is."""
    ours, theirs = dict(_leaves(expected)), dict(_leaves(received))
    assert ours.keys() == theirs.keys(), set(ours) ^ set(theirs)
    differences = []
    for path, values in ours.items():
        assert values.shape == theirs[path].shape, path
        scale = max(1e-3, float(np.abs(values).max(initial=0)))
        differences.append((float(np.abs(values - theirs[path]).max(initial=0)) / scale, path))
    return max(differences)


def main() -> int:
    """Runs the command; returns 1 if a script differs by more than its tolerance."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("scripts", nargs="*", default=all_scripts())
    parser.add_argument("--groups", nargs="*", default=[name for name in GROUPS if name != "plain"])
    options = parser.parse_args()
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        plain = run_scripts("plain", options.scripts, Path(folder, "plain"))
        for group in options.groups:
            received = run_scripts(group, options.scripts, Path(folder, group))
            for name in options.scripts:
                text, ok = _verdict(name, GROUPS[group][0], plain[name][0], received[name])
                failures += not ok
                print(f"{name:20} {group:15} {text}", flush=True)
    print(f"{failures} failed")
    return 1 if failures else 0


def _verdict(
    name: str, kind: str, plain: dict[str, Any], received: list[dict[str, Any]]
) -> tuple[str, bool]:
    refusal = REFUSED.get((name, kind))
    error = next((result["error"] for result in received if "error" in result), None)
    if error is not None:
        return f"refused: {error.strip().splitlines()[-1]}", bool(refusal and refusal in error)
    difference, path = max(largest_difference(plain, result) for result in received)
    return f"{difference:.1e} {path}", difference <= TOLERANCES.get(name, 1e-5)


if __name__ == "__main__":
    sys.exit(main())
