"""Trains, evaluates and predicts from Python, on scikit-learn's handwritten digits.

    python python_api.py 3

The argument is the number of epochs, 3 by default. The images to predict are written to `digits/`.
"""

import sys
from pathlib import Path

from PIL import Image
from sklearn.datasets import load_digits

import distcnn


def write_images(folder: Path, count: int) -> None:
    """Writes the first digits as PNG files of 8 x 8 pixels, named by what they show."""
    folder.mkdir(exist_ok=True)
    digits = load_digits()
    for number in range(count):
        pixels = (digits.images[number] * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(folder / f"{number}_shows_{digits.target[number]}.png")


if __name__ == "__main__":
    epochs = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    trainer = distcnn.Trainer(distcnn.load_config("quickstart", train={"epochs": epochs}))
    if trainer.fit() is None:
        sys.exit("stopped by a signal; the same command resumes the run")
    run = trainer.directory.path

    result = distcnn.evaluate(run)  # the run's own test images
    print(f"{len(result.labels)} test images, accuracy {result.accuracy:.4f}")
    for row in result.by_class():
        print(f"class {row['class']}  precision {row['precision']:.2f}  recall {row['recall']:.2f}")

    write_images(Path("digits"), 5)
    for prediction in distcnn.predict(run, "digits"):
        print(prediction.path, *(f"{name} {value:.3f}" for name, value in prediction.top(3)))
