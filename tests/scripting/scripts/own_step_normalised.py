"""Batch normalisation over all workers in a training step of one's own, with unequal shards."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(23)
rng = np.random.default_rng(23)
x = rng.normal(size=(46, 6)).astype("float32")
y = rng.normal(size=(46, 2)).astype("float32")


class Network(keras.Model):
    """A functional model with its own training step."""

    def train_step(self, data):
        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x=x, y=y, y_pred=self(x, training=True))
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        return {"loss": loss}


inputs = keras.Input((6,))
hidden = keras.layers.Dense(8, activation="tanh")(inputs)
hidden = keras.layers.BatchNormalization(synchronized=True)(hidden)
model = Network(inputs, keras.layers.Dense(2)(hidden))
model.compile(optimizer=keras.optimizers.SGD(0.1), loss="mse")
history = model.fit(x, y, batch_size=9, epochs=2)
predictions = model.predict(x)
