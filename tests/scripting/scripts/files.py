"""Callbacks and functions of Keras that write files, each of which every process would write."""

from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(15)
rng = np.random.default_rng(15)
x = rng.normal(3.0, 2.0, size=(90, 6)).astype("float32")
y = rng.integers(0, 2, 90)
folder = Path("written")
folder.mkdir(exist_ok=True)

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(5), keras.layers.Dense(1)])
model.compile(optimizer="adam", loss=keras.losses.BinaryCrossentropy(from_logits=True))
for epochs in (2, 1):
    history = model.fit(
        x,
        y,
        batch_size=30,
        epochs=epochs,
        verbose=0,
        callbacks=[
            keras.callbacks.CSVLogger(folder / "log.csv", append=True),
            keras.callbacks.TensorBoard(folder / "board"),
            keras.callbacks.BackupAndRestore(folder / "backup", double_checkpoint=True),
        ],
    )
lines = (folder / "log.csv").read_text().splitlines()
events = list((folder / "board").rglob("*.tfevents*"))
scalars = tf.summary.create_file_writer(str(folder / "own"))
with scalars.as_default():
    tf.summary.scalar("loss", history.history["loss"][-1], step=0)
scalars.close()
keras.saving.save_model(model, folder / "model.keras")
again = keras.saving.load_model(folder / "model.keras")
predictions = again.predict(x, verbose=0)
own = list((folder / "own").glob("*"))
evaluation = {
    "lines": float(len(lines)),
    "events": float(len(events)),
    "own": float(len(own)),
    "backups": float((folder / "backup").exists()),
}
