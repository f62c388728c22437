"""Metrics of one's own, whose results are their variables, and a strategy of one's own."""

import contextlib

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(21)
rng = np.random.default_rng(21)
x = rng.normal(size=(70, 5)).astype("float32")
y = rng.integers(0, 3, size=(70, 1))
alone = not tf.distribute.has_strategy()


class Hits(keras.metrics.Metric):
    """Counts right answers."""

    def __init__(self, name="hits"):
        super().__init__(name=name)
        self.count = self.add_variable(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        right = keras.ops.equal(keras.ops.argmax(y_pred, axis=1), keras.ops.ravel(y_true))
        self.count.assign_add(keras.ops.sum(keras.ops.cast(right, "float32")))

    def result(self):
        return self.count


class Both(Hits):
    """Gives two results."""

    def result(self):
        return {"some": self.count, "half": self.count / 2}


model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "softmax")])
model.compile(
    optimizer=keras.optimizers.Adam(0.02),
    loss="sparse_categorical_crossentropy",
    metrics=[Hits(), Both("both")],
)
history = model.fit(x, y, batch_size=16, epochs=3, verbose=0)
with tf.distribute.MirroredStrategy(["CPU:0"]).scope() if alone else contextlib.nullcontext():
    second = keras.Sequential([keras.Input((5,)), keras.layers.Dense(3, "softmax")])
    second.compile("sgd", "sparse_categorical_crossentropy", metrics=["accuracy"])
    inside = second.fit(x, y, batch_size=16, epochs=2, verbose=0, validation_data=(x[:30], y[:30]))
evaluation = model.evaluate(x, y, verbose=0, return_dict=True)
evaluation["alone"] = float(model.metrics[-1].metrics[0].result())
