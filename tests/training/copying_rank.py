"""A rank on a host of its own, with memory of its own: `python -m tests.training.copying_rank`.

Arguments: the folder of the hosts' memory, the step after which the run is lost (0: none), and the
flags of the training run.
"""

import dataclasses
import functools
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

import keras

from distcnn.runtime.cluster import find_cluster
from distcnn.training import trainer
from distcnn.training.state_copies import StateCopies
from tests.runs import parse


class Counting(keras.callbacks.Callback):
    """Counts batches over all interruptions, and loses the run after one of them."""

    def __init__(self, memory: Path, lost_after: int) -> None:
        super().__init__()
        self.count = 0
        self._memory = memory
        self._lost_after = lost_after

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        self.count += 1
        if self.count == self._lost_after:
            deadline = time.monotonic() + 30
            while not list(self._memory.rglob("step-00000010.npz.sha256")):
                assert time.monotonic() < deadline
                time.sleep(0.01)
            time.sleep(0.5)  # the copy itself comes after its checksum
            os._exit(9)

    def on_train_end(self, logs: Any = None) -> None:
        print(f"{self.count} batches")


def main() -> None:
    """Trains."""
    logging.getLogger("distcnn").addHandler(logging.StreamHandler())
    logging.getLogger("distcnn").setLevel(logging.INFO)
    memory, lost_after, *arguments = sys.argv[1:]
    cluster = dataclasses.replace(find_cluster(os.environ), local_rank=0, local_size=1)
    own = Path(memory, f"host-{cluster.rank}")
    own.mkdir(parents=True, exist_ok=True)
    setattr(trainer, "StateCopies", functools.partial(StateCopies, memory=own))  # noqa: B010
    trainer.Trainer(parse(*arguments), [Counting(own, int(lost_after))], cluster).fit()


if __name__ == "__main__":
    main()
