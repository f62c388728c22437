"""A trained classifier, loaded from a run or a file and applied to stored pixels."""

import functools
import logging
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from distcnn.config.recipe import settings_of_run
from distcnn.data.pixels import made_up_images, scale_pixels
from distcnn.data.split import Shape
from distcnn.errors import DistcnnError
from distcnn.fast import fast_model
from distcnn.inference.views import Views
from distcnn.models.building import takes_images
from distcnn.models.outputs import resolve_output
from distcnn.models.own_objects import needs_own_code, own_objects, strings_in
from distcnn.models.pixel_range import resolve_pixels
from distcnn.runtime.text import printable
from distcnn.storage.model_file import find_model, load_model, read_description
from distcnn.storage.model_metadata import ModelMetadata

log = logging.getLogger("distcnn")


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
        """Returns a model that maps uint8 images to probabilities or numbers, of the same weights.

        They are those of the metadata's task: of one class, of each label, or no probabilities.
        """
        images = keras.Input(self.image_shape, dtype="uint8")
        outputs = keras.layers.Lambda(self._classify, dtype="float32")(images)
        if self.metadata.logits:
            activation = "sigmoid" if self.metadata.task == "multilabel" else "softmax"
            outputs = keras.layers.Activation(activation, dtype="float32")(outputs)
        return keras.Model(images, outputs, name="classifier")

    def _classify(self, images: tf.Tensor) -> tf.Tensor:
        network = functools.partial(self._network, training=False)
        scaled = scale_pixels(images, self.metadata.pixels)
        views = Views(self.metadata.test_flip, self.metadata.test_shift)
        return views.mean(network, scaled)

    @functools.cached_property
    def _network(self) -> keras.Model:
        return fast_model(self.model)


def load_classifier(path: Path, *, trust: bool = False) -> Classifier:
    """Loads the classifier of a run directory or a `.keras` file, even one of plain Keras.

    Args:
        path: Run directory, or a `.keras` file.
        trust: Whether to run code that the model needs: the module of the run's `model.factory`,
            and Python lambdas in the file.

    Raises:
        DistcnnError: If there is no model, it is not an image classifier, or it needs code that is
            not trusted.
    """
    file = find_model(path)
    try:
        model, metadata = load_model(file)
    except DistcnnError as error:
        model, metadata = _load_with_own_code(file, error, trust=trust)
    shape = getattr(model, "input_shape", None)
    if not takes_images(shape):
        raise DistcnnError(
            f"{file} takes the input {shape}; expected images (None, height, width, 1 or 3)"
        )
    outputs = model.output_shape[-1]
    if outputs < 2 and (metadata is None or metadata.task == "classification"):
        raise DistcnnError(
            f"{printable(file)} has {outputs} output; expected at least 2, one for each class"
        )
    return Classifier(file, model, metadata or _metadata_of(file, model))


def _load_with_own_code(
    file: Path, error: DistcnnError, *, trust: bool
) -> tuple[keras.Model, ModelMetadata | None]:
    """Loads a model that Keras alone cannot load, if the user trusts it."""
    factory = settings_of_run(file).get("model.factory")
    description = read_description(file)
    if not needs_own_code(description):
        raise error
    if trust:
        names = set(strings_in(description))
        objects = own_objects(factory, names) if factory else {}
        return load_model(file, objects, safe_mode=False)
    if factory is None:
        raise error
    raise DistcnnError(
        f"{file} needs the user's own code from module {str(factory).partition(':')[0]}, which is "
        f"not run unasked; --trust (in Python trust=True) runs it, if you trust this run"
    )


def _metadata_of(file: Path, model: keras.Model) -> ModelMetadata:
    """Finds out what a file of plain Keras takes and returns."""
    pixels, reason = resolve_pixels(model)
    images = scale_pixels(made_up_images(model.input_shape[1:]), pixels)
    output = resolve_output(model, np.asarray(images))
    kind = "logits" if output.logits else "probabilities"
    log.info("%s: pixels %s (%s), output %s (%s)", file, pixels, reason, kind, output.reason)
    return ModelMetadata(pixels=pixels, logits=output.logits)
