"""A Python generator with steps per epoch, and losses and metrics that are plain functions."""

import keras
import numpy as np
from keras import ops

keras.utils.set_random_seed(18)


def batches():
    rng = np.random.default_rng(18)
    while True:
        x = rng.normal(size=(24, 5)).astype("float32")
        yield x, np.sin(x.sum(axis=1, keepdims=True))


def log_cosh(y_true, y_pred):
    return ops.mean(ops.log(ops.cosh(y_pred - y_true)), axis=-1)


def largest_error(y_true, y_pred):
    return ops.mean(ops.max(ops.abs(y_true - y_pred), axis=-1))


model = keras.Sequential([keras.Input((5,)), keras.layers.Dense(8, "swish"), keras.layers.Dense(1)])
model.compile(optimizer=keras.optimizers.Adamax(0.01), loss=log_cosh, metrics=[largest_error])
history = model.fit(batches(), steps_per_epoch=5, epochs=2)
evaluation = model.evaluate(batches(), steps=3, return_dict=True)
