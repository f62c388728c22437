"""Grad-CAM: which parts of an image speak for a class (Selvaraju et al. 2017).

R. R. Selvaraju et al.: Grad-CAM: Visual Explanations from Deep Networks via Gradient-based
Localization, ICCV 2017, arXiv:1610.02391.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.data.pixels import scale_pixels
from distcnn.errors import DistcnnError
from distcnn.inference.classifier import Classifier
from distcnn.runtime.keras_internals import (
    all_layers,
    calls_in_order,
    functional_graph,
    in_evaluation,
    output_structure,
)

_MOST_IMAGES, _BATCH_BYTES = 32, 2**22
_CONVOLUTIONS = (
    keras.layers.Conv2D,
    keras.layers.Conv2DTranspose,
    keras.layers.DepthwiseConv2D,
    keras.layers.SeparableConv2D,
)
_SATURATING = ("softmax", "sigmoid")


class GradCam:
    """Explains the outputs of one classifier.

    Args:
        classifier: The classifier.

    Raises:
        DistcnnError: If its model has no graph of layers, or no feature map after a convolution.
    """

    def __init__(self, classifier: Classifier) -> None:
        self._classifier = classifier
        model = classifier.model
        if functional_graph(model) is None:
            raise DistcnnError(
                f"no Grad-CAM: {type(model).__name__} is neither Sequential nor functional, so its "
                "feature maps are not known"
            )
        if not _convolves(model):
            raise DistcnnError("no Grad-CAM: the model has no convolution")

    def explain(self, images: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        """Returns where in each image the model finds an output.

        Args:
            images: uint8 `(images, height, width, channels)`, as the model takes them.
            outputs: The index of the output to explain of each image, int64 `(images,)`.

        Returns:
            float32 `(images, height, width)` in [0, 1], the largest value of each image 1; all 0
            where nothing speaks for the output.

        Raises:
            DistcnnError: If the outputs depend on no feature map.
        """
        fitting = _BATCH_BYTES // (4 * int(np.prod(images.shape[1:])))
        size = min(_MOST_IMAGES, max(1, fitting))
        parts = [
            self._explain(images[start : start + size], outputs[start : start + size])
            for start in range(0, len(images), size)
        ]
        return np.concatenate([np.zeros((0, *images.shape[1:3]), np.float32), *parts])

    def _explain(self, images: np.ndarray, outputs: np.ndarray) -> np.ndarray:
        maps: list[tf.Tensor] = []
        with tf.GradientTape() as tape:
            scaled = scale_pixels(tf.constant(images), self._classifier.metadata.pixels)
            tape.watch(scaled)
            scores = _compute(self._classifier.model, scaled, maps, is_last=True)
            chosen = tf.gather(tf.cast(scores, tf.float32), outputs, axis=1, batch_dims=1)
        gradients = tape.gradient(chosen, maps)
        known = [pair for pair in zip(maps, gradients, strict=True) if pair[1] is not None]
        if not known:
            raise DistcnnError("no Grad-CAM: the outputs depend on no feature map")
        features, gradient = (tf.cast(each, tf.float32) for each in known[-1])
        weights = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)  # equation 1
        heat = tf.nn.relu(tf.reduce_sum(weights * features, axis=3, keepdims=True))  # equation 2
        heat = tf.image.resize(heat, images.shape[1:3])  # which lowers peaks, so it comes first
        heat /= tf.maximum(tf.reduce_max(heat, axis=(1, 2), keepdims=True), 1e-30)
        found: np.ndarray = heat[..., 0].numpy()
        return found


def _compute(model: keras.Model, inputs: Any, maps: list[tf.Tensor], *, is_last: bool) -> Any:
    """Calls a functional model layer by layer.

    Args:
        model: The model; nested ones are called layer by layer too.
        inputs: Its inputs.
        maps: Gets the feature maps after the first convolution, larger than 1 x 1, in order.
        is_last: Whether its outputs are those of the whole model. They are then returned as they
            are before softmax or sigmoid, where gradients do not vanish.
    """
    graph = functional_graph(model)
    assert graph is not None
    values = dict(zip(map(id, graph.inputs), keras.tree.flatten(inputs), strict=True))
    ends = {id(tensor) for tensor in graph.outputs} if is_last else set()
    for call in calls_in_order(graph):
        operation = call.operation
        arguments, keywords = call.arguments.fill_in(values)
        at_end = any(id(tensor) in ends for tensor in call.outputs)
        if isinstance(operation, keras.Model) and functional_graph(operation) is not None:
            outputs = _compute(operation, arguments[0], maps, is_last=at_end)
        elif at_end and _saturates(operation):
            outputs = _before_activation(operation, arguments[0])
        else:
            outputs = operation(*arguments, **{**keywords, **in_evaluation(operation)})
        outputs = keras.tree.flatten(outputs)
        values.update(zip(map(id, call.outputs), outputs, strict=True))
        if maps or _convolves(operation):
            maps += [each for each in outputs if _is_feature_map(each)]
    return keras.tree.flatten(
        keras.tree.map_structure(lambda tensor: values[id(tensor)], output_structure(graph))
    )[0]


def _convolves(operation: Any) -> bool:
    inside = all_layers(operation) if isinstance(operation, keras.layers.Layer) else ()
    return any(isinstance(layer, _CONVOLUTIONS) for layer in (operation, *inside))


def _is_feature_map(value: Any) -> bool:
    shape = value.shape
    return bool(len(shape) == 4 and shape[1] * shape[2] > 1 and value.dtype.is_floating)


def _saturates(operation: Any) -> bool:
    if isinstance(operation, keras.layers.Softmax):
        return True
    activation = getattr(getattr(operation, "activation", None), "__name__", "")
    kinds = (keras.layers.Activation, keras.layers.Dense)
    return type(operation) in kinds and activation in _SATURATING


def _before_activation(operation: Any, inputs: tf.Tensor) -> tf.Tensor:
    if not isinstance(operation, keras.layers.Dense):
        return inputs
    products = tf.cast(inputs, tf.float32) @ tf.cast(operation.kernel, tf.float32)
    return products if operation.bias is None else products + tf.cast(operation.bias, tf.float32)
