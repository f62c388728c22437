"""A trained classifier, loaded from a run or a file and applied to stored pixels."""

import functools
import sys
from dataclasses import dataclass
from pathlib import Path

import keras
import tensorflow as tf

from distcnn.config import ModelConfig
from distcnn.config.lookup import import_object
from distcnn.config.recipe import settings_of_run
from distcnn.data.pixels import scale_pixels
from distcnn.data.split import Shape
from distcnn.errors import DistcnnError
from distcnn.fast import fast_model
from distcnn.inference.test_time_flip import mean_over_flip
from distcnn.models.building import returns_logits, takes_images
from distcnn.storage.model_file import ModelMetadata, find_model, load_model


@dataclass(frozen=True)
class Classifier:
    """A model and the meaning of its inputs and outputs.

    Attributes:
        path: The model file.
        model: The model.
        metadata: Classes, pixel range, and whether the model returns logits.
    """

    path: Path
    model: keras.Model
    metadata: ModelMetadata

    @property
    def image_shape(self) -> Shape:
        """`(height, width, channels)` of the input images."""
        return self.model.input_shape[1:]

    def on_stored_pixels(self) -> keras.Model:
        """Returns a model that maps uint8 images to probabilities, with the same weights."""
        images = keras.Input(self.image_shape, dtype="uint8")
        outputs = keras.layers.Lambda(self._classify, dtype="float32")(images)
        if self.metadata.logits:
            outputs = keras.layers.Softmax(dtype="float32")(outputs)
        return keras.Model(images, outputs, name="classifier")

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        network = functools.partial(self._network, training=False)
        scaled = scale_pixels(images, self.metadata.pixels)
        return mean_over_flip(network, scaled) if self.metadata.test_flip else network(scaled)

    @functools.cached_property
    def _network(self) -> keras.Model:
        return fast_model(self.model)


def load_classifier(path: Path) -> Classifier:
    """Loads the classifier of a run directory or a `.keras` file, even one of plain Keras.

    Raises:
        DistcnnError: If there is no model, or it is not an image classifier.
    """
    file = find_model(path)
    try:
        model, metadata = load_model(file)
    except DistcnnError:
        custom_objects = _custom_objects(file)
        if not custom_objects:
            raise
        model, metadata = load_model(file, custom_objects)
    shape = getattr(model, "input_shape", None)
    if not takes_images(shape):
        raise DistcnnError(
            f"{file} takes the input {shape}; expected images (None, height, width, 1 or 3)"
        )
    if metadata is None:
        metadata = ModelMetadata(logits=returns_logits(ModelConfig(), model))
    return Classifier(file, model, metadata)


def _custom_objects(file: Path) -> dict[str, type]:
    """Imports the module of a run's `model.factory` and returns its layers and models by name."""
    factory = settings_of_run(file).get("model.factory")
    if factory is None:
        return {}
    module = sys.modules[import_object(factory, "model.factory").__module__]
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, keras.layers.Layer)
    }
