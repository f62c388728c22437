"""The weights that a run begins with: those of another model, as far as they fit."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.errors import DistcnnError
from distcnn.models.own_objects import own_objects, strings_in
from distcnn.models.rebuilding import same_random_numbers
from distcnn.runtime.keras_internals import layers_in_order, learned_variables
from distcnn.storage.model_file import find_model, load_model, read_description
from distcnn.storage.model_metadata import ModelMetadata

_NAMED = 3
"""Layers that a message names."""

_Key = tuple[str, int]


@dataclass(frozen=True)
class TakenWeights:
    """What a model has taken from another one.

    Attributes:
        description: What was taken and what was not, in one line.
        metadata: What is known of the other model; None if plain Keras wrote it.
    """

    description: str
    metadata: ModelMetadata | None


def take_weights(
    model: keras.Model, path: Path, *, factory: str | None = None, classes: Sequence[str] = ()
) -> TakenWeights:
    """Gives a model the weights of another one, layer by layer, where names and shapes are alike.

    Names that Keras has chosen are compared by the class of the layer and its place among those of
    that class; names of models within the model do not count. A head for other classes is set to
    zero, so that training begins from equal probabilities: a random one turns the large features
    of a trained network into sure and wrong answers (Kolesnikov et al. 2020, "Big Transfer",
    arXiv:1912.11370, begin in the same way).

    Args:
        model: Built model.
        path: A finished run, or a `.keras` file.
        factory: The function that has built the model, in whose module the user's own classes are
            looked for.
        classes: What the model's outputs are.

    Raises:
        DistcnnError: If there is no such model, it cannot be loaded, or has another architecture;
            the model is then unchanged.
    """
    with same_random_numbers(), tf.device("CPU:0"):
        other, metadata = _load(path, factory)
    there = {key: weights for key, _, weights in _layers(other)}
    here = list(_layers(model))
    other_classes = metadata is not None and bool(metadata.classes) and bool(classes)
    new_head = other_classes and metadata is not None and metadata.classes != tuple(classes)
    head = next((key for key, layer, _ in reversed(here) if learned_variables(layer)), None)
    fits = {
        key: _kinds(weights) == _kinds(there.get(key, ())) and not (new_head and key == head)
        for key, _, weights in here
    }
    _require_same_architecture(path, here, there, fits, head)
    for key, layer, weights in here:
        if fits[key]:
            for variable, value in zip(weights, there[key], strict=True):
                variable.assign(np.asarray(keras.ops.convert_to_numpy(value)))
        elif key == head and isinstance(layer, keras.layers.Dense):
            for variable in weights:
                variable.assign(np.zeros(variable.shape))
    return TakenWeights(_describe(path, here, there, fits), metadata)


def _load(path: Path, factory: str | None) -> tuple[keras.Model, ModelMetadata | None]:
    try:
        file = find_model(path)
        description = read_description(file)
        try:
            return load_model(file)
        except DistcnnError:
            if factory is None:
                raise
            return load_model(file, own_objects(factory, set(strings_in(description))))
    except DistcnnError as error:
        raise DistcnnError(f"init_from: {error}") from None


def _layers(model: keras.Model) -> Iterator[tuple[_Key, keras.layers.Layer, list[Any]]]:
    """Yields the layers with weights in order: what identifies each, the layer, and its weights."""
    counts: Counter[str] = Counter()
    for layer, weights in _with_weights(model, set()):
        base = re.sub(r"_\d+$", "", layer.name)
        chosen_by_keras = base.replace("_", "") == type(layer).__name__.lower()
        name = type(layer).__name__ if chosen_by_keras else layer.name
        counts[name] += 1
        yield (name, counts[name]), layer, weights


def _with_weights(
    model: keras.Model, seen: set[int]
) -> Iterator[tuple[keras.layers.Layer, list[Any]]]:
    for layer in layers_in_order(model):
        if id(layer) in seen:
            continue
        seen.add(id(layer))
        if isinstance(layer, keras.Model):
            yield from _with_weights(layer, seen)
        elif layer.weights:
            yield layer, list(layer.weights)
    of_layers = {id(weight) for layer in model.layers for weight in layer.weights}
    own = [weight for weight in model.weights if id(weight) not in of_layers]
    if own:
        yield model, own


def _shapes(weights: Sequence[Any]) -> list[tuple[int, ...]]:
    return [tuple(weight.shape) for weight in weights]


def _kinds(weights: Sequence[Any]) -> list[tuple[str, tuple[int, ...]]]:
    """Returns names and shapes: a scale and a centre of batch normalisation are shaped alike."""
    return [(weight.name, tuple(weight.shape)) for weight in weights]


def _require_same_architecture(
    path: Path,
    here: list[tuple[_Key, keras.layers.Layer, list[Any]]],
    there: dict[_Key, list[Any]],
    fits: dict[_Key, bool],
    head: _Key | None,
) -> None:
    body = [key for key, _, _ in here if key != head] or [key for key, _, _ in here]
    count = sum(fits[key] for key in body)
    if 2 * count <= len(body):
        different = next(
            f"; {layer.name} {_difference(weights, there.get(key))}"
            for key, layer, weights in here
            if not fits[key] and key in body
        )
        raise DistcnnError(
            f"init_from is {path}, which has another architecture: {count} of {len(body)} layers "
            f"fit by name and shape{different}; give a model of the same --model.name or "
            "--model.factory, with the same model.args"
        )


def _difference(here: Sequence[Any], there: Sequence[Any] | None) -> str:
    if there is None:
        return "is not in it"
    pairs = zip(_shapes(here), _shapes(there), strict=False)
    for own, other in pairs:
        if own != other:
            return f"has the shape {own}, there {other}"
    if len(here) != len(there):
        return f"has {len(here)} weights, there {len(there)}"
    for own, other in zip(here, there, strict=True):
        if own.name != other.name:
            return f"has {own.name}, there {other.name}"
    return "is for other classes"


def _describe(
    path: Path,
    here: list[tuple[_Key, keras.layers.Layer, list[Any]]],
    there: dict[_Key, list[Any]],
    fits: dict[_Key, bool],
) -> str:
    def count(layers: list[tuple[_Key, keras.layers.Layer, list[Any]]]) -> int:
        return sum(int(np.prod(shape)) for _, _, weights in layers for shape in _shapes(weights))

    taken = [each for each in here if fits[each[0]]]
    left = [each for each in here if not fits[each[0]]]
    text = (
        f"{path}: {len(taken)} of {len(here)} layers, {count(taken):,} of {count(here):,} weights"
    )
    if left:
        names = [
            f"{layer.name} ({_difference(weights, there.get(key))})"
            for key, layer, weights in left[-_NAMED:]
        ]
        more = f"{len(left) - _NAMED} more, " if len(left) > _NAMED else ""
        text += f"; new: {more}{', '.join(names)}"
    unused = len(there) - sum(key in fits for key in there)
    return f"{text}; {unused} layers there are not here" if unused else text
