"""Sequences of different lengths: embedding with a mask, an LSTM, a loss for every step."""

import keras
import numpy as np

keras.utils.set_random_seed(16)
rng = np.random.default_rng(16)
lengths = rng.integers(2, 9, 60)
tokens = rng.integers(1, 20, (60, 8)) * (np.arange(8) < lengths[:, None])
tags = rng.integers(0, 4, (60, 8))

model = keras.Sequential(
    [
        keras.Input((8,), dtype="int32"),
        keras.layers.Embedding(20, 6, mask_zero=True),
        keras.layers.LSTM(7, return_sequences=True),
        keras.layers.Dense(4, "softmax"),
    ]
)
model.compile(optimizer="rmsprop", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
history = model.fit(tokens, tags, batch_size=22, epochs=2)
predictions = model.predict(tokens)
