"""A training step that draws from TensorFlow's own random operations."""

import keras
import numpy as np
import tensorflow as tf


class Noisy(keras.Sequential):
    """Trains on inputs with noise."""

    def train_step(self, data):
        x, y = data
        return super().train_step((x + tf.random.normal(tf.shape(x)), y))


model = Noisy([keras.layers.Dense(1)])
model.compile(optimizer="sgd", loss="mse")
model.fit(np.ones((8, 2), "float32"), np.ones((8, 1), "float32"), batch_size=2, verbose=0)
