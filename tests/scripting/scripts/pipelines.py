"""Pipelines with Dataset.map, whose last batches are smaller, or smaller than the workers."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(19)
rng = np.random.default_rng(19)
x = rng.integers(0, 255, (13, 6)).astype("uint8")
y = rng.integers(0, 3, 13)
source = tf.data.Dataset.from_tensor_slices((x, y))


def decode(pixels, label):
    return tf.cast(pixels, tf.float32) / 255.0 - 0.5, label


def augment(pixels, label):
    noise = tf.random.stateless_normal(tf.shape(pixels), [tf.cast(label, tf.int32), 3])
    return pixels + 0.1 * noise, label


def build(**keywords):
    model = keras.Sequential(
        [keras.Input((6,)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(3)]
    )
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer="adam", loss=loss, metrics=["accuracy"], **keywords)
    return model


shuffled = source.shuffle(13, seed=4)
ragged = shuffled.map(decode, num_parallel_calls=2).map(augment).batch(5).prefetch(2)
plain = source.map(decode).batch(6)

first = build()
ragged_history = first.fit(ragged, epochs=2, validation_data=plain, class_weight={0: 2.0, 2: 0.5})
evaluation = first.evaluate(ragged, return_dict=True)
predictions = first.predict(plain)
again = first.fit(ragged, epochs=1)

second = build(steps_per_execution=2)
endless = shuffled.map(decode).repeat().batch(6, drop_remainder=True)
endless_history = second.fit(
    endless, epochs=2, steps_per_epoch=4, validation_data=plain.repeat(), validation_steps=2
)
shuffled = source.shuffle(13, seed=5)
repeated = second.fit(shuffled.map(decode).batch(4).repeat(2), epochs=2)
