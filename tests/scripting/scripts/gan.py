"""Two networks and two optimizers in one training step; the noise comes with the data."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(10)
rng = np.random.default_rng(10)
real = rng.normal(2.0, 0.5, size=(80, 5)).astype("float32")
noise = rng.normal(size=(80, 3)).astype("float32")


class Gan(keras.Model):
    """A generator against a discriminator."""

    def __init__(self):
        super().__init__()
        self.generator = keras.Sequential([keras.Input((3,)), keras.layers.Dense(5)])
        self.discriminator = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])

    def compile(self, g_optimizer, d_optimizer, loss_fn):
        super().compile()
        self.g_optimizer = g_optimizer
        self.d_optimizer = d_optimizer
        self.loss_fn = loss_fn
        self.d_metric = keras.metrics.Mean(name="d_loss")
        self.g_metric = keras.metrics.Mean(name="g_loss")

    def train_step(self, data):
        images, noise = data
        count = tf.shape(images)[0]
        fake = self.generator(noise)
        labels = tf.concat([tf.ones((count, 1)), tf.zeros((count, 1))], 0)
        with tf.GradientTape() as tape:
            loss = self.loss_fn(labels, self.discriminator(tf.concat([fake, images], 0)))
        weights = self.discriminator.trainable_weights
        self.d_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.d_metric.update_state(loss)
        with tf.GradientTape() as tape:
            outputs = self.discriminator(self.generator(noise))
            loss = self.loss_fn(tf.zeros((count, 1)), outputs)
        weights = self.generator.trainable_weights
        self.g_optimizer.apply_gradients(zip(tape.gradient(loss, weights), weights, strict=True))
        self.g_metric.update_state(loss)
        return {"d_loss": self.d_metric.result(), "g_loss": self.g_metric.result()}


model = Gan()
model.compile(
    keras.optimizers.Adam(0.01),
    keras.optimizers.Adam(0.02, beta_1=0.5),
    keras.losses.BinaryCrossentropy(from_logits=True),
)
history = model.fit(real, noise, epochs=3, batch_size=32)
