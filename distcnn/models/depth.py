"""The layers of a model in the order in which an image passes them, as fine-tuning counts them."""

import re
from collections.abc import Iterator
from typing import Any

import keras

from distcnn.runtime.keras_internals import all_layers, layers_in_order, learned_variables

_BLOCK = re.compile(r".*?block_?\d+[a-z]?(?![\da-z])|expanded_conv(_\d+)?(?![\da-z])")
"""The beginning of a layer's name by which networks name their blocks: conv4_block2, block_3,
block2a, stage_0_block_1, expanded_conv_4."""

_NORMALISATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
)


def layers_by_depth(model: keras.Model) -> list[list[keras.layers.Layer]]:
    """Returns the layers of a model that learn, in groups that count as one layer.

    Layers whose names begin with the same block are one; a normalisation belongs to the layer
    before it; a layer made of layers is one. Models within the model are taken apart.

    Args:
        model: Built model. Layers that it calls several times count where it first does.

    Returns:
        The groups, the one nearest to the images first; the last one is the head.
    """
    groups: dict[str, list[keras.layers.Layer]] = {}
    for layer in _learning_layers(model):
        block = _BLOCK.match(layer.name)
        if block is not None:
            groups.setdefault(block[0], []).append(layer)
        elif groups and isinstance(layer, _NORMALISATIONS):
            groups[next(reversed(groups))].append(layer)
        else:
            groups[f"{len(groups)} {layer.name}"] = [layer]
    return list(groups.values())


def _learning_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    seen: set[int] = set()
    for layer in layers_in_order(model):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            yield from (inner for inner in _learning_layers(layer) if id(inner) not in seen)
        elif learned_variables(layer):
            yield layer


def rate_factors(model: keras.Model, decay: float) -> list[float]:
    """Returns the factor on the learning rate of each trainable variable of a model.

    As in BEiT (Bao et al. 2022, appendix) and timm, layer i of L has the factor `decay ** (L - i)`.
    Variables that belong to no layer have the factor 1.

    Args:
        model: Built model.
        decay: Factor from one layer to the one before it.
    """
    groups = layers_by_depth(model)
    factors = {
        id(variable): decay ** (len(groups) - 1 - place)
        for place, group in enumerate(groups)
        for layer in group
        for variable in learned_variables(layer)
    }
    return [factors.get(id(variable), 1.0) for variable in model.trainable_variables]


class Freezing:
    """Trains some of the layers of a model, and knows which ones it trains by itself.

    Layers that are frozen at the beginning stay so. Variables that belong to no layer count as the
    first one.

    Args:
        model: Built model.

    Attributes:
        groups: Its layers, from `layers_by_depth`.
    """

    def __init__(self, model: keras.Model) -> None:
        self.groups = layers_by_depth(model)
        self._initial = [(layer, layer.trainable) for layer in all_layers(model)]
        self._learned = [v for v in learned_variables(model) if v.trainable]
        grouped = {
            id(v) for group in self.groups for each in group for v in learned_variables(each)
        }
        rest = [variable for variable in learned_variables(model) if id(variable) not in grouped]
        self._rest = [(variable, variable.trainable) for variable in rest]

    @property
    def frozen(self) -> list[Any]:
        """The variables that are frozen now and were not at the beginning."""
        return [variable for variable in self._learned if not variable.trainable]

    def train_last(self, count: int | None, *, freeze_batchnorm: bool = False) -> None:
        """Freezes all but the last layers; batch normalisation then uses its moving statistics.

        Args:
            count: How many groups of layers to train; None for all.
            freeze_batchnorm: Whether batch normalisation is frozen in these too.
        """
        self.release()
        first = 0 if count is None else len(self.groups) - count
        for group in self.groups[:first]:
            for layer in group:
                layer.trainable = False
        for variable, _ in self._rest if first else ():
            variable.trainable = False
        for layer, _ in self._initial:
            if freeze_batchnorm and isinstance(layer, keras.layers.BatchNormalization):
                layer.trainable = False

    def release(self) -> None:
        """Lets the model train what it did at the beginning."""
        for layer, trainable in self._initial:  # outer layers first, which set their inner ones
            layer.trainable = trainable
        for variable, trainable in self._rest:
            variable.trainable = trainable
