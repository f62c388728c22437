"""Predictions of every type, eager steps, and a test step of one's own."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(18)
rng = np.random.default_rng(18)
x = rng.normal(size=(45, 4)).astype("float32")
y = rng.integers(0, 3, 45)


class Labeller(keras.Model):
    """Classifies, and gives what users of a classifier ask for."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.gap = keras.metrics.Mean("gap")
        self.most = keras.metrics.MeanMetricWrapper(
            lambda targets, scores: tf.reduce_max(scores, -1), name="most"
        )

    def call(self, inputs):
        scores = self.dense(inputs)
        if inputs.dtype == "float64" or not self.labels:
            return scores
        best = tf.argmax(scores, -1)
        return {
            "label": best,
            "byte": tf.cast(best, tf.uint8),
            "sure": tf.reduce_max(scores, -1) > 0.5,
            "double": tf.cast(scores, tf.float64),
            "half": tf.cast(scores, tf.float16),
            "wave": tf.signal.fft(tf.cast(scores, tf.complex64)),
            "name": tf.gather(["a", "b", "c"], best),
        }

    labels = False

    def test_step(self, data):
        inputs, targets = data
        scores = self(inputs, training=False)
        loss = self.compute_loss(x=inputs, y=targets, y_pred=scores)
        self.gap.update_state(tf.reduce_max(scores, -1) - tf.reduce_min(scores, -1))
        self.most.update_state(targets, scores)
        return {"loss": loss, "gap": self.gap.result(), "most": self.most.result()}


model = Labeller()
model.compile(
    optimizer="adam",
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    run_eagerly=True,
)
history = model.fit(x, y, batch_size=13, epochs=2, verbose=0, validation_data=(x[:20], y[:20]))
evaluation = model.evaluate(x, y, batch_size=16, verbose=0, return_dict=True)
model.labels = True
model.compile()
predictions = model.predict(x, batch_size=17, verbose=0)
predictions["name"] = (predictions["name"] == b"b").astype("float32")
predictions["wave"] = np.abs(predictions["wave"])
