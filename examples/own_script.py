"""A plain Keras script, which knows nothing of distcnn.

    python own_script.py
    distcnn horovodrun -np 2 python -m distcnn.run own_script.py

Both print the same loss, accuracy and sum of weights.
"""

import sys

import keras
import numpy as np
from sklearn.datasets import load_digits

epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 5
keras.utils.set_random_seed(1)
images, labels = load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16

model = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, padding="same", activation="relu"),
        keras.layers.MaxPooling2D(),
        keras.layers.Flatten(),
        keras.layers.Dense(10, "softmax"),
    ]
)
model.compile(optimizer="adam", loss="sparse_categorical_crossentropy", metrics=["accuracy"])
model.fit(images[:1400], labels[:1400], batch_size=64, epochs=epochs, verbose=2)
loss, accuracy = model.evaluate(images[1400:], labels[1400:], verbose=0)
total = sum(float(np.abs(weights).sum()) for weights in model.get_weights())
print(f"test loss {loss:.5f}  test accuracy {accuracy:.5f}  sum of weights {total:.3f}")
