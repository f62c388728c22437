"""A rank of a run whose chief is killed before one of its operations on files.

    python -m tests.faults.killed_rank KILL_BEFORE FILE FLAG...

Rank 0 writes into FILE how many operations there were, if it lives.
"""

import atexit
import os
import sys
from pathlib import Path

from distcnn.cli.command import run_command
from distcnn.runtime.cluster import find_cluster
from distcnn.train import main
from tests.faults.kill_point import KillPoint
from tests.runs import parse


def counted() -> None:
    """Counts the operations on the run directory, and kills this process before one of them."""
    number, file, *flags = sys.argv[1:]
    sys.argv[1:] = flags
    if find_cluster(os.environ).rank == 0:
        point = KillPoint(Path(str(parse(*flags).out)), int(number))
        atexit.register(lambda: Path(file).write_text(str(point.count)))
        sys.addaudithook(point)


if __name__ == "__main__":
    counted()
    run_command(main)
