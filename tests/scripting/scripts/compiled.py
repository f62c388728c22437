"""A step compiled by XLA, amid which the workers exchange batch statistics and sums of weights."""

import keras
import numpy as np

keras.utils.set_random_seed(19)
rng = np.random.default_rng(19)
x = rng.normal(size=(48, 6)).astype("float32")
y = rng.integers(0, 3, 48)

weights = rng.uniform(0.2, 2.0, 48)

model = keras.Sequential(
    [
        keras.Input((6,)),
        keras.layers.Dense(7, use_bias=False),
        keras.layers.BatchNormalization(synchronized=True),
        keras.layers.Activation("tanh"),
        keras.layers.Dense(3),
    ]
)
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(
        from_logits=True, reduction="mean_with_sample_weight"
    ),
    metrics=["accuracy"],
    jit_compile=True,
)
history = model.fit(x, y, sample_weight=weights, batch_size=16, epochs=2)
predictions = model.predict(x)
