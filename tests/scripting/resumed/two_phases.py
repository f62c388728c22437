"""Trains in two phases, with the first layer frozen and then all of them.

The variable CRASH=SIGNAL:BATCH sends itself a signal in the second phase.
"""

import os
import pickle
import signal
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(5)
rng = np.random.default_rng(5)
x = rng.normal(size=(60, 6)).astype("float32")
y = (x @ rng.normal(size=(6, 1)) > 0).astype("float32")
sent, _, batch = os.environ.get("CRASH", "SIGTERM:0").partition(":")
rank = int(os.environ.get("HOROVOD_RANK") or os.environ.get("RANK_OF_TEST", "0"))
last = int("RANK_OF_TEST" in os.environ or "HOROVOD_RANK" in os.environ)


class Recorder(keras.callbacks.Callback):
    """Keeps the loss of every batch, and sends the signal."""

    def __init__(self):
        super().__init__()
        self.losses = []

    def on_train_batch_end(self, batch_in_epoch, logs=None):
        self.losses.append(logs["loss"])
        if len(self.losses) == int(batch) and (sent == "SIGKILL" or rank == last):
            os.kill(os.getpid(), signal.Signals[sent])


model = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(1, "sigmoid")])
model.layers[0].trainable = False
model.compile(optimizer="adam", loss="binary_crossentropy", metrics=["accuracy"])
stopping = keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
first = model.fit(x, y, batch_size=12, epochs=3, validation_split=0.2, callbacks=[stopping])
evaluation = model.evaluate(x, y)

data = tf.data.Dataset.from_tensor_slices((x, y)).shuffle(60).batch(12)
model.layers[0].trainable = True
auc = keras.metrics.AUC(num_thresholds=20)
model.compile(optimizer=keras.optimizers.SGD(0.1, 0.9), loss="binary_crossentropy", metrics=[auc])
recorder = Recorder()
plateau = keras.callbacks.ReduceLROnPlateau(monitor="loss", patience=0, min_delta=0.05)
logger = keras.callbacks.CSVLogger("log.csv")
second = model.fit(
    data, epochs=5, validation_data=(x[:12], y[:12]), callbacks=[recorder, plateau, logger]
)

result = {
    "histories": [first.history, second.history],
    "losses": recorder.losses,
    "evaluation": evaluation,
    "weights": model.get_weights(),
    "optimizer": [np.asarray(v) for v in model.optimizer.variables],
    "random": float(np.random.rand()),
    "rows": len(Path("log.csv").read_text().splitlines()),
}
if rank == 0:
    Path("result.pickle").write_bytes(pickle.dumps(result))
