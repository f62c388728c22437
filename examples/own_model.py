"""Trains a model of your own on scikit-learn's handwritten digits.

Run it in this folder, with the command or as a script for a number of epochs (3 by default):

    python -m distcnn.train --recipe quickstart --model.factory own_model:net
    python own_model.py 3

The model is plain Keras: the images arrive in the shape that the function is given, with pixels in
[0, 1], and the outputs may be probabilities or logits.
"""

import sys

import keras

import distcnn


def net(input_shape: tuple[int, int, int], num_classes: int, width: int = 32) -> keras.Model:
    """Returns a small convolutional network; `--model.args '{"width": 64}'` makes it wider."""
    return keras.Sequential(
        [
            keras.Input(input_shape),
            keras.layers.Conv2D(width, 3, strides=2, activation="relu"),
            keras.layers.Conv2D(2 * width, 3, strides=2, activation="relu"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(num_classes, activation="softmax", dtype="float32"),
        ]
    )


if __name__ == "__main__":
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    model = {"factory": "own_model:net", "args": {"width": 48}}
    config = distcnn.load_config("quickstart", model=model, train={"epochs": epochs})
    summary = distcnn.Trainer(config).fit()
    if summary:  # None if a signal stopped the run
        print(f"{summary['parameters']:,} parameters, accuracy {summary['test_accuracy']:.4f}")
