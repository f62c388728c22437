"""Segmentation: one class a pixel, MeanIoU, an infinite data set, several steps an execution."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(8)
rng = np.random.default_rng(8)
images = rng.normal(size=(40, 8, 8, 3)).astype("float32")
masks = (images.sum(-1) > 0).astype("int32")
train = tf.data.Dataset.from_tensor_slices((images, masks)).repeat().batch(10)

inputs = keras.Input((8, 8, 3))
hidden = keras.layers.Conv2D(6, 3, padding="same", activation="relu")(inputs)
hidden = keras.layers.MaxPooling2D()(hidden)
hidden = keras.layers.Conv2DTranspose(6, 2, strides=2, activation="relu")(hidden)
model = keras.Model(inputs, keras.layers.Conv2D(2, 1)(hidden))
model.compile(
    optimizer=keras.optimizers.Nadam(0.01),
    loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    metrics=[keras.metrics.MeanIoU(2, sparse_y_pred=False), "accuracy"],
    steps_per_execution=3,
)
history = model.fit(train, steps_per_epoch=6, epochs=2)
predictions = model.predict(images, batch_size=7)
