"""What a model takes and returns: found out by running it on a few images, once per run."""

from dataclasses import dataclass

import keras
import numpy as np

from distcnn.config import Config
from distcnn.config.task import Task
from distcnn.data.pixels import PixelRange, made_up_images, scale_pixels
from distcnn.models.outputs import resolve_task_output
from distcnn.models.pixel_range import resolve_pixels
from distcnn.models.rebuilding import require_same_after_loading


@dataclass(frozen=True)
class ModelInterface:
    """The meaning of a model's inputs and outputs.

    Attributes:
        pixels: Range of the pixels that the model expects.
        pixels_reason: Why.
        logits: Whether the model returns logits rather than probabilities.
        output_reason: Why.
    """

    pixels: PixelRange
    pixels_reason: str
    logits: bool
    output_reason: str


def inspect_model(
    config: Config, model: keras.Model, images: np.ndarray, task: Task = "classification"
) -> ModelInterface:
    """Finds out what a model takes and returns, and that saving keeps it.

    Args:
        config: The run.
        model: The built classifier.
        images: Some images of the data, uint8 of shape `(count, height, width, channels)`.
        task: What the labels are.

    Raises:
        DistcnnError: If the outputs are neither probabilities nor logits, or the model would be
            another one after saving and loading.
    """
    pixels, pixels_reason = resolve_pixels(model, config.data.pixels)
    noise = made_up_images(model.input_shape[1:])[-1:]
    stored = np.concatenate([images, noise])
    scaled = np.asarray(scale_pixels(stored, pixels))
    require_same_after_loading(config.model, model, scaled[-2:])
    output = resolve_task_output(model, scaled, task, config.model.output)
    return ModelInterface(pixels, pixels_reason, output.logits, output.reason)
