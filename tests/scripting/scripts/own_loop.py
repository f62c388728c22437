"""A loop of one's own with GradientTape, without fit."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(11)
rng = np.random.default_rng(11)
x = rng.normal(size=(60, 7)).astype("float32")
y = rng.integers(0, 3, 60)
batches = tf.data.Dataset.from_tensor_slices((x, y)).batch(15)

model = keras.Sequential([keras.Input((7,)), keras.layers.Dense(9, "relu"), keras.layers.Dense(3)])
optimizer = keras.optimizers.Adam(0.01)
loss_fn = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
accuracy = keras.metrics.SparseCategoricalAccuracy()


@tf.function
def train(images, labels):
    with tf.GradientTape() as tape:
        outputs = model(images, training=True)
        loss = loss_fn(labels, outputs)
    gradients = tape.gradient(loss, model.trainable_weights)
    optimizer.apply_gradients(zip(gradients, model.trainable_weights, strict=True))
    accuracy.update_state(labels, outputs)
    return loss


history: dict[str, list[float]] = {"loss": [], "accuracy": []}
for _ in range(2):
    accuracy.reset_state()
    losses = [float(train(images, labels)) for images, labels in batches]
    history["loss"].append(sum(losses) / len(losses))
    history["accuracy"].append(float(accuracy.result()))
predictions = model.predict(x)
