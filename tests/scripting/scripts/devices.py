"""Begins by setting up devices and threads, as many scripts do."""

import contextlib
import os

import keras
import numpy as np
import tensorflow as tf

for gpu in tf.config.list_physical_devices("GPU"):
    tf.config.experimental.set_memory_growth(gpu, True)
# Plain Python fails as well where something has used TensorFlow before.
plain = os.environ.get("HOROVOD_SIZE") is None
with contextlib.suppress(RuntimeError) if plain else contextlib.nullcontext():
    tf.config.threading.set_intra_op_parallelism_threads(3)
    tf.config.threading.set_inter_op_parallelism_threads(3)
    tf.config.set_logical_device_configuration(
        tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()]
    )

keras.utils.set_random_seed(16)
x = np.random.default_rng(16).normal(size=(40, 3)).astype("float32")
model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(1)])
model.compile(optimizer="sgd", loss="mse")
history = model.fit(x, x[:, :1], batch_size=20, epochs=2, verbose=0)
