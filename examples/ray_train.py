"""distcnn's session inside Ray Train: Ray starts the workers, which train in lockstep.

    python ray_train.py
    python ray_train.py 1    # one worker: the same loss and weights

It needs `pip install "ray[train]"`.
"""

import os
import sys

import ray.train
from ray.train.tensorflow import TensorflowTrainer


def train(settings: dict[str, int]) -> None:
    """Trains on one of Ray's workers; they find each other by the TF_CONFIG that Ray sets."""
    os.environ.pop("TF_USE_LEGACY_KERAS", None)  # Ray sets it; before TensorFlow is imported
    import keras
    from sklearn.datasets import load_digits

    import distcnn

    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
    with distcnn.session() as run:
        layers = [keras.layers.Conv2D(16, 3, activation="relu"), keras.layers.Flatten()]
        model = keras.Sequential([keras.Input((8, 8, 1)), *layers, keras.layers.Dense(10)])
        model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
        history = run.fit(model, images, labels, epochs=settings["epochs"], verbose=0).history
    weights = sum(float(abs(array).sum()) for array in model.get_weights())
    loss = history["loss"][-1]
    ray.train.report({"loss": loss, "weights": weights})
    print(f"rank {run.rank} of {run.size}: loss {loss:.7f}  weights {weights:.5f}")


if __name__ == "__main__":
    workers = int(sys.argv[1]) if len(sys.argv) > 1 else 2
    scaling = ray.train.ScalingConfig(num_workers=workers)
    TensorflowTrainer(train, train_loop_config={"epochs": 3}, scaling_config=scaling).fit()
