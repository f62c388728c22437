"""train_on_batch and test_on_batch, with metrics reset by hand."""

import keras
import numpy as np

keras.utils.set_random_seed(12)
rng = np.random.default_rng(12)
x = rng.normal(size=(64, 5)).astype("float32")
y = (x.sum(axis=1, keepdims=True) > 0).astype("float32")

model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(6, "relu"), keras.layers.Dense(1)])
model.compile(
    optimizer=keras.optimizers.Adagrad(0.05),
    loss=keras.losses.BinaryCrossentropy(from_logits=True),
    metrics=[keras.metrics.BinaryAccuracy(threshold=0.0)],
)
history: dict[str, list[float]] = {"loss": [], "binary_accuracy": [], "test_loss": []}
for start in [0, 16, 32, 48, 8]:
    logs = model.train_on_batch(x[start : start + 15], y[start : start + 15], return_dict=True)
    for name, value in logs.items():
        history[name].append(float(value))
    history["test_loss"].append(float(model.test_on_batch(x, y, return_dict=True)["loss"]))
predictions = model.predict_on_batch(x)
