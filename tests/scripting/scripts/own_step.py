"""A subclassed variational autoencoder with a training step and trackers of its own."""

import keras
import numpy as np
import tensorflow as tf
from keras import ops

keras.utils.set_random_seed(9)
rng = np.random.default_rng(9)
data = rng.uniform(size=(96, 12)).astype("float32")


class Autoencoder(keras.Model):
    """Encodes to two numbers and decodes; the noise of the code is left out."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.encoder = keras.Sequential([keras.layers.Dense(8, "relu"), keras.layers.Dense(4)])
        self.decoder = keras.Sequential(
            [keras.layers.Dense(8, "relu"), keras.layers.Dense(12, "sigmoid")]
        )
        self.total = keras.metrics.Mean(name="loss")
        self.kl = keras.metrics.Mean(name="kl")

    @property
    def metrics(self):
        return [self.total, self.kl]

    def call(self, inputs):
        return self.decoder(self.encoder(inputs)[:, :2])

    def train_step(self, data):
        with tf.GradientTape() as tape:
            code = self.encoder(data)
            mean, log_variance = code[:, :2], code[:, 2:]
            outputs = self.decoder(mean)
            error = ops.mean(
                ops.sum(keras.losses.binary_crossentropy(data[..., None], outputs[..., None]), 1)
            )
            kl = -0.5 * (1 + log_variance - ops.square(mean) - ops.exp(log_variance))
            kl = ops.mean(ops.sum(kl, axis=1))
            loss = error + kl
        gradients = tape.gradient(loss, self.trainable_weights)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
        self.total.update_state(loss)
        self.kl.update_state(kl)
        return {"loss": self.total.result(), "kl": self.kl.result(), "error": error}


model = Autoencoder()
model.compile(optimizer=keras.optimizers.Adam(0.01))
history = model.fit(data, epochs=3, batch_size=21, verbose=2)
predictions = model.predict(data)
