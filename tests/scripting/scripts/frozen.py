"""Fits a model with nothing to train: a Normalization, and a layer that adds a loss."""

import keras
import numpy as np

keras.utils.set_random_seed(20)
x = np.random.default_rng(20).normal(2.0, size=(30, 3)).astype("float32")


class Penalty(keras.layers.Layer):
    """Adds the mean square of what it is given."""

    def call(self, inputs):
        self.add_loss(0.1 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


normalize = keras.layers.Normalization()
normalize.adapt(x)
model = keras.Sequential([keras.Input((3,)), normalize, Penalty()])
model.compile(optimizer="sgd", loss="mse", metrics=["mae"])
history = model.fit(x, x, batch_size=11, epochs=2, verbose=0)
model.add(keras.layers.Dense(3, name="frozen"))
model.layers[-1].trainable = False
model.compile(optimizer="adam", loss="mse")
model.fit(x, x, batch_size=11, verbose=0)
evaluation = model.evaluate(x, x, verbose=0, return_dict=True)
