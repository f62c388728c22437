"""Two inputs, two outputs by name, loss weights, dictionaries, add_loss."""

import keras
import numpy as np

keras.utils.set_random_seed(5)
rng = np.random.default_rng(5)
data = {
    "image": rng.normal(size=(64, 6, 6, 1)).astype("float32"),
    "meta": rng.normal(size=(64, 4)).astype("float32"),
}
targets = {"age": rng.normal(size=(64, 1)).astype("float32"), "kind": rng.integers(0, 4, 64)}


class ActivityPenalty(keras.layers.Layer):
    """Adds the mean square of what passes through to the loss."""

    def call(self, inputs):
        self.add_loss(0.01 * keras.ops.mean(keras.ops.square(inputs)))
        return inputs


image = keras.Input((6, 6, 1), name="image")
meta = keras.Input((4,), name="meta")
features = keras.layers.Flatten()(keras.layers.Conv2D(4, 3)(image))
features = ActivityPenalty()(keras.layers.Concatenate()([features, meta]))
features = keras.layers.Dense(8, "relu", activity_regularizer="l1")(features)
age = keras.layers.Dense(1, name="age")(features)
kind = keras.layers.Dense(4, "softmax", name="kind")(features)
model = keras.Model({"image": image, "meta": meta}, {"age": age, "kind": kind})
model.compile(
    optimizer=keras.optimizers.AdamW(0.01),
    loss={"age": "huber", "kind": "sparse_categorical_crossentropy"},
    loss_weights={"age": 0.3, "kind": 1.0},
    metrics={"age": ["mae"], "kind": ["accuracy"]},
)
history = model.fit(data, targets, batch_size=16, epochs=2, validation_data=(data, targets))
predictions = model.predict(data)
