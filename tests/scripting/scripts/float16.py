"""Mixed precision with loss scaling, chosen by the script itself."""

import keras
import numpy as np

keras.utils.set_random_seed(20)
keras.config.set_dtype_policy("mixed_float16")
rng = np.random.default_rng(20)
x = rng.normal(size=(64, 6)).astype("float32")
y = rng.integers(0, 3, 64)

model = keras.Sequential(
    [keras.Input((6,)), keras.layers.Dense(16, "relu"), keras.layers.Dense(3, dtype="float32")]
)
model.compile(
    optimizer=keras.optimizers.SGD(0.1),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy"],
)
history = model.fit(x, y, batch_size=16, epochs=2)
predictions = model.predict(x)
keras.config.set_dtype_policy("float32")
