"""A step compiled by XLA."""

import keras
import numpy as np

keras.utils.set_random_seed(19)
rng = np.random.default_rng(19)
x = rng.normal(size=(48, 6)).astype("float32")
y = rng.integers(0, 3, 48)

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(7, "relu"), keras.layers.Dense(3)])
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
    jit_compile=True,
)
history = model.fit(x, y, batch_size=16, epochs=2)
predictions = model.predict(x)
