"""Trains with a Keras callback of your own, which stops the run early.

    python own_callback.py 0.95

The callback records the learning rate of every epoch, and stops the run when the validation
accuracy reaches the argument (0.95 by default). Keras' own callbacks are passed in the same way.
"""

import sys
from typing import Any

import keras

import distcnn


class StopAtAccuracy(keras.callbacks.Callback):
    """Records the learning rate, and stops at a validation accuracy in [0, 1]."""

    def __init__(self, accuracy: float) -> None:
        super().__init__()
        self.accuracy = accuracy
        self.rates: list[float] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        """Called by Keras at the end of each epoch, in every worker."""
        self.rates.append(float(self.model.optimizer.learning_rate))
        if logs["val_accuracy"] >= self.accuracy:
            self.model.stop_training = True


if __name__ == "__main__":
    callback = StopAtAccuracy(float(sys.argv[1]) if len(sys.argv) > 1 else 0.95)
    trainer = distcnn.Trainer(distcnn.load_config("quickstart"), callbacks=[callback])
    summary = trainer.fit()
    print("learning rates:", *(f"{rate:.4f}" for rate in callback.rates))
    if summary:  # None if a signal stopped the run
        print(f"{summary['epochs']} epochs, validation accuracy {summary['val_accuracy']:.4f}")
