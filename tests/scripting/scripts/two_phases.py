"""Transfer learning: trains the head with the base frozen, then both at a lower rate."""

import keras
import numpy as np

keras.utils.set_random_seed(13)
rng = np.random.default_rng(13)
x = rng.normal(size=(72, 8, 8, 1)).astype("float32")
y = keras.utils.to_categorical(rng.integers(0, 3, 72), 3)

base = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(6, 3, activation="relu"),
        keras.layers.LayerNormalization(),
        keras.layers.GlobalAveragePooling2D(),
    ]
)
base.trainable = False
model = keras.Sequential([base, keras.layers.Dense(3, "softmax")])
loss = keras.losses.CategoricalCrossentropy(label_smoothing=0.1)
model.compile(optimizer=keras.optimizers.Adam(0.05), loss=loss, metrics=["accuracy"])
first = model.fit(x, y, batch_size=18, epochs=2, validation_split=0.25)

base.trainable = True
schedule = keras.optimizers.schedules.CosineDecay(0.01, 12)
model.compile(optimizer=keras.optimizers.Lion(schedule), loss=loss, metrics=["accuracy"])
history = model.fit(x, y, batch_size=18, initial_epoch=2, epochs=4, validation_split=0.25)
predictions = model.predict(x)
