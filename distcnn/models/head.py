"""How a model ends: softmax over classes, a sigmoid for each label, or numbers."""

from dataclasses import dataclass

import keras
import numpy as np

from distcnn.config.task import Task
from distcnn.errors import DataError

_ACTIVATIONS: dict[Task, str] = {
    "classification": "softmax",
    "multilabel": "sigmoid",
    "regression": "linear",
}


@dataclass(frozen=True)
class Head:
    """The end of a model.

    Attributes:
        activation: Activation of the outputs: softmax, sigmoid or linear.
        mean: Means of the training labels that are numbers; empty for classes.
        scale: Their standard deviations.
    """

    activation: str = "softmax"
    mean: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: Task, labels: np.ndarray | None, names: tuple[str, ...]) -> "Head":
        """Returns the head for a task.

        Args:
            task: What the labels are.
            labels: The training labels, float32 `(images, numbers)` for regression.
            names: Names of the numbers.

        Raises:
            DataError: A number is the same for all images.
        """
        if task != "regression" or labels is None:
            return cls(_ACTIVATIONS[task])
        mean, scale = labels.mean(axis=0, dtype=np.float64), labels.std(axis=0, dtype=np.float64)
        if not scale.all():
            index = int(scale.argmin())
            raise DataError(
                f"{names[index]} is {mean[index]:g} for all training images; expected numbers that "
                "differ"
            )
        return cls("linear", tuple(mean.tolist()), tuple(scale.tolist()))

    def rescaled(self, model: keras.Model) -> keras.Model:
        """Returns a model whose outputs begin with the mean and deviation of the labels.

        A fresh model returns numbers around 0 of size 1. Learning rates then fit labels of any
        unit, and the model returns numbers in the unit of the labels.
        """
        if not self.scale:
            return model
        scale, offset = list(self.scale), list(self.mean)
        layer = keras.layers.Rescaling(scale, offset, dtype="float32", name="unit_of_labels")
        return keras.Model(model.inputs, layer(model.outputs[0]), name=model.name)


SOFTMAX = Head()
"""The end of a model that tells classes apart."""
