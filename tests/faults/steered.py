"""A user's callback that steers a run: how fast it is, and how much memory it takes."""

import os
import time
from pathlib import Path
from typing import Any

import keras

from distcnn.runtime.cluster import find_cluster

FOLDER_VARIABLE = "STEERED"
"""Environment variable with the folder whose files steer the run; it may be missing."""

HURRY = "hurry"
"""A file that lets the run go as fast as it can."""

_STEP_SECONDS = 0.05
_BLOCK_BYTES = 1 << 24
_BLOCKS = 128


def hungry(rank: int) -> str:
    """Returns the name of a file that makes a rank take 2 GB of memory, once."""
    return f"hungry-{rank}"


class Steered(keras.callbacks.Callback):
    """Does what the files in a folder ask for, after every step."""

    def __init__(self) -> None:
        super().__init__()
        folder = os.environ.get(FOLDER_VARIABLE)
        self._folder = Path(folder) if folder else None
        self._hungry = hungry(find_cluster(os.environ).rank)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self._folder is None:
            return
        if (self._folder / self._hungry).exists():
            (self._folder / self._hungry).unlink()
            taken = [bytearray(_BLOCK_BYTES) for _ in range(_BLOCKS)]
            del taken
        if not (self._folder / HURRY).exists():
            time.sleep(_STEP_SECONDS)
