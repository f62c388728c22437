"""Measures for how long the training stands still while a large model is saved.

    python -m tests.training.measuring_saving [--width N] [--epochs N] [--steps N]

trains dense layers on a few synthetic images, with Adam: by default 101 million parameters, so a
checkpoint of 1.2 GB at the end of each epoch. Prints the seconds between the end of an epoch and
the next step (for the last epoch: and the end of the training), the time of a step, the seconds of
the whole training, and the most memory that the process has taken.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import keras
from keras import layers

from distcnn.runtime.memory import peak_bytes
from distcnn.training.trainer import Trainer
from tests.runs import small_config

BATCH = 32


def dense(input_shape: tuple[int, int, int], num_classes: int, width: int = 8192) -> keras.Model:
    """A model with about width * (width + 4096) parameters."""
    inputs = keras.Input(input_shape)
    x = layers.Flatten()(inputs)
    for units in (width, width, 1024):
        x = layers.Dense(units, activation="relu")(x)
    return keras.Model(inputs, layers.Dense(num_classes, activation="softmax")(x))


class Clock(keras.callbacks.Callback):
    """Records when epochs and steps end and begin."""

    reads_logs = False

    def __init__(self) -> None:
        super().__init__()
        self.stalls: list[float] = []
        self.steps: list[float] = []
        self._epoch_ended: float | None = None

    def on_train_begin(self, logs: object = None) -> None:
        self.began = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: object = None) -> None:
        self._epoch_ended = time.perf_counter()

    def on_train_batch_begin(self, batch: int, logs: object = None) -> None:
        self._stall_ends()
        self._step_began = time.perf_counter()

    def on_train_batch_end(self, batch: int, logs: object = None) -> None:
        float(keras.ops.convert_to_numpy(self.model.optimizer.iterations))  # waits for the step
        self.steps.append(time.perf_counter() - self._step_began)

    def on_train_end(self, logs: object = None) -> None:
        self._stall_ends()
        self.seconds = time.perf_counter() - self.began

    def _stall_ends(self) -> None:
        if self._epoch_ended is not None:
            self.stalls.append(time.perf_counter() - self._epoch_ended)
            self._epoch_ended = None


def main() -> None:
    """Runs the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="Steps of an epoch.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = small_config(
            Path(folder, "run"),
            model__factory="tests.training.measuring_saving:dense",
            model__args={"width": options.width},
            data__synthetic_examples=BATCH * options.steps,
            data__validation="none",
            train__batch_size=BATCH,
            train__epochs=options.epochs,
            logging__every_steps=1000,
        )
        clock = Clock()
        trainer = Trainer(config, [clock])
        trainer.fit()
        newest = max(Path(folder, "run/checkpoints").glob("*.npz")).stat().st_size
    waited = ", ".join(f"{seconds:.2f}" for seconds in clock.stalls)
    print(f"checkpoint      {newest / 1e9:.2f} GB, {trainer.model.count_params():,} parameters")
    print(f"stood still     {waited} s")
    print(f"step            {1000 * statistics.median(clock.steps[1:]):.0f} ms (median)")
    print(f"training        {clock.seconds:.1f} s")
    print(f"memory, peak    {peak_bytes() / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
