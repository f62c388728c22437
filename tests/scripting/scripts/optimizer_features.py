"""Accumulated gradients, averaged weights, clipping by the global norm."""

import keras
import numpy as np

keras.utils.set_random_seed(15)
rng = np.random.default_rng(15)
x = rng.normal(size=(80, 6)).astype("float32")
y = rng.integers(0, 2, 80)

model = keras.Sequential([keras.Input((6,)), keras.layers.Dense(12, "gelu"), keras.layers.Dense(2)])
model.compile(
    optimizer=keras.optimizers.Adam(
        0.02,
        global_clipnorm=0.1,
        use_ema=True,
        ema_momentum=0.9,
        ema_overwrite_frequency=3,
        gradient_accumulation_steps=2,
    ),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(x, y, batch_size=16, epochs=3, shuffle=False)
predictions = model.predict(x)
