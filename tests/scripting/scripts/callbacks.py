"""Callbacks that decide by the logs, stop inside an epoch, and write files."""

import keras
import numpy as np

keras.utils.set_random_seed(14)
rng = np.random.default_rng(14)
x = rng.normal(size=(100, 6)).astype("float32")
y = x @ rng.normal(size=(6, 1)).astype("float32")


class StopBelow(keras.callbacks.Callback):
    """Stops in the middle of an epoch when the running loss is low enough."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def on_train_batch_end(self, batch, logs=None):
        self.seen.append(float(logs["loss"]))
        if logs["loss"] < 1.5:
            self.model.stop_training = True


model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(10, "relu"), keras.layers.Dense(1)])
model.compile(optimizer=keras.optimizers.Adam(0.02), loss="mse")
stopper = StopBelow()
history = model.fit(
    x,
    y,
    batch_size=16,
    epochs=30,
    validation_split=0.2,
    callbacks=[
        stopper,
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", patience=1, min_delta=0.5),
        keras.callbacks.EarlyStopping(monitor="val_loss", patience=8, restore_best_weights=True),
        keras.callbacks.ModelCheckpoint("best.keras", save_best_only=True),
        keras.callbacks.CSVLogger("log.csv"),
    ],
)
evaluation = {"steps": float(len(stopper.seen)), "last": stopper.seen[-1]}
best = keras.models.load_model("best.keras")
predictions = best.predict(x)
