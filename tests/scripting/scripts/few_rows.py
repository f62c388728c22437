"""Batches with fewer rows than workers; batch normalisation in evaluation only; eager steps."""

import keras
import numpy as np

keras.utils.set_random_seed(17)
rng = np.random.default_rng(17)
x = rng.normal(size=(13, 4)).astype("float32")
y = rng.normal(size=(13, 2)).astype("float32")

model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(5, "tanh"), keras.layers.Dense(2)])
model.compile(optimizer=keras.optimizers.SGD(0.05), loss="mse", metrics=["mae"], run_eagerly=True)
history = model.fit(x, y, batch_size=6, epochs=2, validation_data=(x[:1], y[:1]))
predictions = model.predict(x, batch_size=2)
evaluation = model.evaluate(x, y, batch_size=1, return_dict=True)
