"""Losses divided by the sum of the sample weights; class weights."""

import keras
import numpy as np

keras.utils.set_random_seed(2)
rng = np.random.default_rng(2)
x = rng.normal(size=(90, 10)).astype("float32")
y = rng.integers(0, 3, 90)
weights = rng.uniform(0, 3, 90).astype("float32")

model = keras.Sequential([keras.layers.Dense(12, "relu"), keras.layers.Dense(3, "softmax")])
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(reduction="mean_with_sample_weight"),
    metrics=["accuracy"],
)
history = model.fit(x, y, sample_weight=weights, batch_size=20, epochs=2)

balanced = keras.Sequential([keras.layers.Dense(12, "relu"), keras.layers.Dense(3, "softmax")])
balanced.compile(optimizer="sgd", loss="sparse_categorical_crossentropy")
second = balanced.fit(x, y, class_weight={0: 1.0, 1: 2.0, 2: 0.5}, batch_size=20, epochs=2)
