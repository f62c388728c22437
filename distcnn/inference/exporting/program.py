"""The function that is exported: stored pixels to outputs, independent of any precision."""

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from typing_extensions import override

from distcnn.config.recipe import settings_of_run
from distcnn.config.task import Task
from distcnn.data.framing import Framing, Shape
from distcnn.data.pixels import scale_pixels
from distcnn.errors import DistcnnError
from distcnn.inference.classifier import Classifier
from distcnn.inference.views import Views
from distcnn.models.float32 import in_float32, short_policy
from distcnn.models.own_objects import own_objects, strings_in
from distcnn.storage.model_file import read_description
from distcnn.storage.model_metadata import ModelMetadata

INPUT = "images"
"""Name of the input of an export."""

OUTPUTS: dict[Task, str] = {
    "classification": "probabilities",
    "multilabel": "probabilities",
    "regression": "numbers",
}
"""Name of the output of an export, by what the labels are."""


class _OnStoredPixels(keras.layers.Layer):
    """Scales uint8 images, and turns logits into probabilities."""

    def __init__(self, network: keras.Model, metadata: ModelMetadata) -> None:
        super().__init__(name="classifier", dtype="float32", autocast=False)
        self.network = network
        self._metadata = metadata

    @override
    def call(self, images: Any) -> Any:
        metadata = self._metadata
        views = Views(metadata.test_flip, metadata.test_shift)
        network = functools.partial(self.network, training=False)
        outputs = views.mean(network, scale_pixels(images, metadata.pixels))
        if not metadata.logits:
            return outputs
        return tf.sigmoid(outputs) if metadata.task == "multilabel" else tf.nn.softmax(outputs)


@dataclass(frozen=True)
class Program:
    """A classifier in float32, as it is exported.

    Attributes:
        classifier: The classifier; its model computes in float32.
        layer: Maps uint8 images `(batch, height, width, channels)` to probabilities or numbers,
            float32 `(batch, classes)`. It owns the variables.
        framing: How images become the model's input.
        trained_in: The dtype policy of a model of mixed precision, which was rebuilt; else None.
    """

    classifier: Classifier
    layer: keras.layers.Layer
    framing: Framing
    trained_in: str | None

    @property
    def image_shape(self) -> Shape:
        """`(height, width, channels)` of the input images."""
        return self.classifier.image_shape

    @property
    def task(self) -> Task:
        """What the outputs are: one class for each image, any number of labels, or numbers."""
        return self.classifier.metadata.task

    @property
    def output(self) -> str:
        """Name of the output."""
        return OUTPUTS[self.task]

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names in the order of the outputs, or their numbers if they are unknown."""
        numbers = tuple(map(str, range(self.classifier.model.output_shape[-1])))
        return self.classifier.metadata.classes or numbers

    def function(self, batch: int | None = None) -> Any:
        """Returns the program as a `tf.function` of uint8 images.

        Args:
            batch: Images of a batch. Default: any number.
        """
        signature = tf.TensorSpec((batch, *self.image_shape), tf.uint8, name=INPUT)
        return tf.function(
            lambda images: {self.output: self.layer(images)},
            input_signature=[signature],
            autograph=False,
        )


def build_program(classifier: Classifier, framing: Framing, *, trust: bool) -> Program:
    """Returns the program of a classifier, in float32.

    Args:
        classifier: The classifier; a model of mixed precision is rebuilt.
        framing: How images become the model's input.
        trust: Whether to run code that the model needs, as for `load_classifier`.

    Raises:
        DistcnnError: If the model is of mixed precision and cannot be rebuilt.
    """
    policy = short_policy(classifier.model)
    if policy is not None:
        model = _rebuilt(classifier, trust=trust)
        classifier = dataclasses.replace(classifier, model=model)
    layer = _OnStoredPixels(classifier.model, classifier.metadata)
    layer(np.zeros((1, *classifier.image_shape), np.uint8))
    return Program(classifier, layer, framing, policy)


def _rebuilt(classifier: Classifier, *, trust: bool) -> keras.Model:
    factory = settings_of_run(classifier.path).get("model.factory")
    objects = {}
    if factory and trust:
        objects = own_objects(factory, set(strings_in(read_description(classifier.path))))
    try:
        return in_float32(classifier.model, objects, safe_mode=not trust)
    except Exception as error:  # whatever Keras, or the class of a layer, makes of it
        cause = str(error).rpartition("Exception encountered: ")[2]
        raise DistcnnError(
            f"{classifier.path} was trained in mixed precision and cannot be rebuilt in float32 to "
            f"be exported: {' '.join(cause.split())[:300]}; train it with --precision.policy "
            "float32, or let get_config of your own layers return every argument"
        ) from None
