"""A layer that computes a chain of layers in fewer passes over memory."""

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import keras
import tensorflow as tf
from typing_extensions import override

from distcnn.fast.compiled import compiled_activation, layer_normalise
from distcnn.fast.operations import (
    Replicas,
    keep_mask,
    masked_relu,
    normalise_across,
    normalise_batch,
    normalise_by,
)


class Kind(enum.Enum):
    """Operation of a stage of a chain."""

    LINEAR = enum.auto()
    BIAS = enum.auto()
    RELU = enum.auto()
    ACTIVATION = enum.auto()
    MAX_POOL = enum.auto()
    DROPOUT = enum.auto()
    NORM = enum.auto()
    LAYER_NORM = enum.auto()


@dataclass(frozen=True)
class Stage:
    """One operation of a chain, and the layer whose settings and variables it uses."""

    kind: Kind
    layer: keras.layers.Layer


def stages_of(layer: keras.layers.Layer) -> list[Stage] | None:
    """Splits a layer into stages.

    Returns:
        The stages in order, or None if the fast path does not support the layer. Only Keras' own
        layers are supported; a subclass may compute something else.
    """
    stages = _split(layer)
    if stages is None or layer.activity_regularizer is not None:
        return None
    supported = layer.compute_dtype in ("float32", "bfloat16", "float16")
    return stages if supported and layer.variable_dtype == "float32" else None


def _split(layer: keras.layers.Layer) -> list[Stage] | None:
    kind = type(layer)
    if kind in (keras.layers.Conv2D, keras.layers.Dense):
        supported = not layer.lora_enabled and layer.quantization_mode is None
        if kind is keras.layers.Conv2D:
            supported = supported and layer.data_format == "channels_last"
        if not supported:
            return None
        bias = [Stage(Kind.BIAS, layer)] if layer.use_bias else []
        return [Stage(Kind.LINEAR, layer), *bias, *_activation(layer)]
    if kind is keras.layers.Activation:
        return _activation(layer)
    if kind is keras.layers.ReLU:
        plain = not layer.negative_slope and layer.max_value is None and not layer.threshold
        return [Stage(Kind.RELU, layer)] if plain else None
    if kind is keras.layers.MaxPooling2D and layer.data_format == "channels_last":
        return [Stage(Kind.MAX_POOL, layer)]
    if kind is keras.layers.Dropout and layer.noise_shape is None and layer.rate < 1:
        return [Stage(Kind.DROPOUT, layer)] if layer.rate else []
    if kind is keras.layers.BatchNormalization and not layer.renorm:
        (axis,) = layer.input_spec.axes
        if layer.input_spec.ndim in (2, 4) and axis in (-1, layer.input_spec.ndim - 1):
            return [Stage(Kind.NORM, layer)]
    if kind is keras.layers.LayerNormalization and not layer.rms_scaling:
        return [Stage(Kind.LAYER_NORM, layer)] if layer.axis in (-1, [-1]) else None
    return None


def _activation(layer: keras.layers.Layer) -> list[Stage]:
    if layer.activation in (None, keras.activations.linear):
        return []
    relu = layer.activation is keras.activations.relu
    return [Stage(Kind.RELU if relu else Kind.ACTIVATION, layer)]


def pool_early(stages: Sequence[Stage]) -> list[Stage]:
    """Moves max pooling in front of bias and relu, which then process fewer elements.

    Both are monotone within a channel, even after rounding, so the maximum of a window remains its
    maximum and the outputs are bit-identical.
    """
    ordered: list[Stage] = []
    for stage in stages:
        place = len(ordered)
        if stage.kind is Kind.MAX_POOL:
            while place and ordered[place - 1].kind in (Kind.BIAS, Kind.RELU):
                place -= 1
        ordered.insert(place, stage)
    return ordered


class Synchronised(Replicas, Protocol):
    """The replicas, and the layers that normalise over the images of all of them."""

    layers: list[keras.layers.Layer]


class Chain(keras.layers.Layer):
    """Computes a sequence of layers on their own variables.

    Dropout uses the same distribution and seed generators as Keras', but draws different random
    numbers. In training, consecutive relu, dropout and batch normalisation are fused: dropout's
    scale s = 1 / (1 - rate) is never multiplied in, because normalising s r with epsilon equals
    normalising r with epsilon / s^2.

    Args:
        layers: Built layers with the same compute dtype, all supported by `stages_of`.
        synchronised: The layers that normalise over all replicas, or None.
    """

    def __init__(
        self, layers: Sequence[keras.layers.Layer], synchronised: Synchronised | None = None
    ) -> None:
        super().__init__(dtype=layers[0].dtype_policy)
        self.chained = list(layers)
        self._stages = pool_early([s for layer in layers for s in stages_of(layer) or ()])
        self._synchronised = synchronised
        self.built = True

    @override
    def call(self, inputs: tf.Tensor, training: bool = False) -> tf.Tensor:
        outputs = inputs
        stages = [s for s in self._stages if training or s.kind is not Kind.DROPOUT]
        while stages:
            kinds = [stage.kind for stage in stages[:3]]
            relu = kinds[0] is Kind.RELU
            if kinds[relu : relu + 1] == [Kind.DROPOUT]:
                outputs, used = self._drop(outputs, stages, relu)
            else:
                outputs, used = self._plain(outputs, stages[0], training), 1
            stages = stages[used:]
        return outputs

    def _drop(
        self, inputs: tf.Tensor, stages: Sequence[Stage], relu: bool
    ) -> tuple[tf.Tensor, int]:
        """Computes dropout, fused with its neighbours; returns also the number of stages used."""
        dropout = stages[relu].layer
        seed = tf.convert_to_tensor(dropout.seed_generator.next())
        mask = keep_mask(seed, dropout.rate, inputs)
        kept = masked_relu(inputs, mask) if relu else inputs * mask
        scale = 1 / (1 - dropout.rate)
        following = stages[relu + 1 : relu + 2]
        if following and following[0].kind is Kind.NORM and following[0].layer.trainable:
            return self._normalise(kept, following[0].layer, scale), relu + 2
        return kept * tf.cast(scale, kept.dtype), relu + 1

    def _plain(self, inputs: tf.Tensor, stage: Stage, training: bool) -> tf.Tensor:
        layer = stage.layer
        if stage.kind is Kind.LINEAR:
            if isinstance(layer, keras.layers.Dense):
                return _product(inputs, tf.convert_to_tensor(layer.kernel))
            return layer.convolution_op(inputs, layer.kernel)
        if stage.kind is Kind.BIAS:
            return tf.nn.bias_add(inputs, tf.convert_to_tensor(layer.bias))
        if stage.kind is Kind.RELU:
            return tf.nn.relu(inputs)
        if stage.kind is Kind.ACTIVATION:
            compiled = compiled_activation(layer.activation) if training else None
            return tf.cast((compiled or layer.activation)(inputs), self.compute_dtype)
        if stage.kind is Kind.LAYER_NORM:
            gamma, beta = _affine(layer, inputs.shape[-1])
            return layer_normalise(inputs, gamma, beta, layer.epsilon)
        if stage.kind is Kind.MAX_POOL:
            return layer.call(inputs)
        if training and layer.trainable:
            return self._normalise(inputs, layer)
        gamma, beta = _affine(layer, inputs.shape[-1])
        mean, variance = _variable(layer.moving_mean), _variable(layer.moving_variance)
        outputs = normalise_by(inputs, gamma, beta, mean, variance, layer.epsilon)
        return tf.ensure_shape(outputs, inputs.shape)

    def _normalise(
        self, inputs: tf.Tensor, layer: keras.layers.Layer, scale: float = 1.0
    ) -> tf.Tensor:
        """Normalises `scale * inputs` in training, and updates the layer's moving statistics."""
        gamma, beta = _affine(layer, inputs.shape[-1])
        epsilon = layer.epsilon / scale**2
        if self._synchronised is not None and layer in self._synchronised.layers:
            origin = _variable(layer.moving_mean) / scale
            outputs, mean, variance = normalise_across(
                inputs, gamma, beta, epsilon, origin, self._synchronised
            )
        else:
            outputs, mean, variance = normalise_batch(inputs, gamma, beta, epsilon)
        for moving, value in (
            (layer.moving_mean, mean * scale),
            (layer.moving_variance, variance * scale**2),
        ):
            kept = _variable(moving) * layer.momentum
            moving.assign(kept + tf.stop_gradient(value) * (1 - layer.momentum))
        return tf.ensure_shape(outputs, inputs.shape)

    @override
    def compute_output_shape(self, input_shape: Any) -> Any:
        shape = input_shape
        for layer in self.chained:
            shape = layer.compute_output_shape(shape)
        return shape


def _product(inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
    """Multiplies the last axis by a matrix, as one product instead of one for each image."""
    if inputs.shape.rank == 2:
        return tf.matmul(inputs, kernel)
    outputs = tf.matmul(tf.reshape(inputs, [-1, inputs.shape[-1]]), kernel)
    shape = tf.concat([tf.shape(inputs)[:-1], kernel.shape[-1:]], 0)
    return tf.ensure_shape(tf.reshape(outputs, shape), [*inputs.shape[:-1], kernel.shape[-1]])


def _affine(layer: keras.layers.Layer, channels: int) -> tuple[tf.Tensor, tf.Tensor]:
    gamma = _variable(layer.gamma) if layer.scale else tf.ones([channels])
    beta = _variable(layer.beta) if layer.center else tf.zeros([channels])
    return gamma, beta


def _variable(variable: Any) -> tf.Tensor:
    """Reads a variable in its own dtype, without autocasting to the compute dtype."""
    return tf.convert_to_tensor(variable.value)
