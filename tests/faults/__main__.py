"""Runs a short sample of every campaign.

    python -m tests.faults [--seed S] [--folder DIR]

All are forks of one parent that has imported TensorFlow.
"""

import argparse
import os
import random
import sys
import tempfile
from pathlib import Path
from types import ModuleType

from tests.faults import (
    another_user,
    damage,
    full_disk,
    hostile,
    kill_points,
    mutated_images,
)
from tests.faults.campaign import run_cases

SAMPLE: dict[str, tuple[ModuleType, tuple[str, ...], int]] = {
    "kill_points": (kill_points, ("early_stopping",), 1),
    "damage": (damage, tuple(damage.CASES), 3),
    "full_disk": (full_disk, ("run",), 1),
    "mutated_images": (mutated_images, ("JPEG", "PNG", "GIF", "BMP", "WebP"), 10),
    "hostile": (hostile, ("recipes", "checkpoints", "models"), 2),
    "another_user": (another_user, ("writing",), 1),
}
"""The cases of each campaign that are sampled, and the faults of each."""


def main() -> int:
    """Runs the sample, and returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--folder", type=Path, help="Where to work. Default: a temporary folder.")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="distcnn-faults-"))
    folder.mkdir(parents=True, exist_ok=True)
    print(f"seed {options.seed}", flush=True)
    codes = []
    os.environ["XDG_CACHE_HOME"] = str(folder / ".cache")
    for name, (module, cases, points) in SAMPLE.items():
        print(f"# {name}", flush=True)
        chosen = {case: module.CASES[case] for case in cases}
        codes.append(run_cases(chosen, points, options.seed, folder / name))
    return int(any(codes))


if __name__ == "__main__":
    sys.exit(main())
