"""Images in arrays, a validation split, a ragged last batch, two metrics."""

import keras
import numpy as np

keras.utils.set_random_seed(3)
rng = np.random.default_rng(0)
x_train = rng.normal(size=(150, 8, 8, 3)).astype("float32")
y_train = rng.integers(0, 5, 150)

model = keras.Sequential(
    [
        keras.layers.Input((8, 8, 3)),
        keras.layers.Conv2D(8, 3, activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(5, kernel_regularizer="l2"),
    ]
)
model.compile(
    optimizer=keras.optimizers.Adam(0.01),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=["accuracy", keras.metrics.SparseTopKCategoricalAccuracy(2)],
)
history = model.fit(x_train, y_train, epochs=3, batch_size=33, validation_split=0.2)
predictions = model.predict(x_train)
evaluation = model.evaluate(x_train, y_train, return_dict=True)
