"""Tabular regression: the loss is a sum, sample weights, constraints, clipping, a PyDataset."""

import math

import keras
import numpy as np

keras.utils.set_random_seed(1)
rng = np.random.default_rng(1)


class Rows(keras.utils.PyDataset):
    """Batches of 17 rows, the last one smaller."""

    def __init__(self, rows, **kwargs):
        super().__init__(**kwargs)
        self.x = rng.normal(size=(rows, 6)).astype("float32")
        self.y = (self.x.sum(axis=1) ** 2).astype("float32")
        self.weights = rng.uniform(0.1, 2.0, rows).astype("float32")

    def __len__(self):
        return math.ceil(len(self.x) / 17)

    def __getitem__(self, index):
        rows = slice(17 * index, 17 * index + 17)
        return self.x[rows], self.y[rows], self.weights[rows]


train, valid = Rows(100), Rows(35)
inputs = keras.Input((6,))
hidden = keras.layers.Dense(16, activation="tanh", kernel_constraint="unit_norm")(inputs)
model = keras.Model(inputs, keras.layers.Dense(1)(hidden))
model.compile(
    optimizer=keras.optimizers.RMSprop(1e-3, clipnorm=0.5),
    loss=keras.losses.MeanSquaredError(reduction="sum"),
    metrics=["mae"],
    weighted_metrics=["mse", keras.metrics.R2Score()],
)
history = model.fit(train, validation_data=valid, epochs=3, verbose=2)
predictions = model.predict(valid)
