"""Multi-label classification with metrics that are not means: AUC, F1, Precision, Recall."""

import keras
import numpy as np
import tensorflow as tf

keras.utils.set_random_seed(7)
rng = np.random.default_rng(7)
x = rng.normal(size=(120, 9)).astype("float32")
y = (x[:, :4] + rng.normal(size=(120, 4)) > 0.3).astype("float32")
train = tf.data.Dataset.from_tensor_slices((x[:90], y[:90])).shuffle(90, seed=1).batch(25)
valid = tf.data.Dataset.from_tensor_slices((x[90:], y[90:])).batch(25)

model = keras.Sequential([keras.layers.Dense(20, "relu"), keras.layers.Dense(4, "sigmoid")])
model.compile(
    optimizer=keras.optimizers.SGD(0.1, momentum=0.9, nesterov=True),
    loss=keras.losses.BinaryFocalCrossentropy(),
    metrics=[
        keras.metrics.AUC(multi_label=True),
        keras.metrics.F1Score(average="macro", threshold=0.5),
        keras.metrics.Precision(),
        keras.metrics.Recall(),
    ],
)
history = model.fit(train, validation_data=valid, epochs=3, validation_freq=2)
predictions = model.predict(valid)
evaluation = model.evaluate(valid, return_dict=True)
