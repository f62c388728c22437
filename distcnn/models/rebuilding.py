"""Checks before a training that the model will still be the same after saving and loading."""

import contextlib
import json
import logging
import random
from collections.abc import Iterator, Mapping
from typing import Any

import keras
import numpy as np

from distcnn.config import ModelConfig
from distcnn.errors import DistcnnError
from distcnn.models.own_objects import named_like_keras, own_objects, strings_in
from distcnn.runtime.files import parse_json
from distcnn.runtime.keras_internals import (
    all_layers,
    calls_in_order,
    functional_graph,
    in_evaluation,
)

log = logging.getLogger("distcnn")

_MOST_PARAMETERS = 200_000_000
"""A larger model is not rebuilt, as it would take twice the memory."""

_COMPARED = 5000
"""Values of each layer's output that are compared."""


def require_same_after_loading(config: ModelConfig, model: keras.Model, images: np.ndarray) -> None:
    """Rebuilds a model from its configuration, copies its weights and compares the outputs.

    This is what loading the finished run's `model.keras` does; nothing is written. Random numbers
    of Python and NumPy go on as if nothing had happened. Not checked are the built-in models and
    Keras' own, a model with a Python lambda, which Keras refuses to load, and one of more than 200
    million parameters.

    Args:
        config: Names the function that built the model, in whose module its own objects are
            looked for.
        model: The built classifier.
        images: float32 of shape `(count, height, width, channels)`.

    Raises:
        DistcnnError: If the model cannot be rebuilt, or computes something else; it names the
            layer.
    """
    if config.factory is None or config.factory.startswith("keras."):
        return  # nothing of a user's own; a test checks the built-in models
    if model.count_params() > _MOST_PARAMETERS:
        log.info("saving          not checked (more than %d parameters)", _MOST_PARAMETERS)
        return
    # What compile set is not loaded; tuples become lists, as in a file.
    description = keras.saving.serialize_keras_object(model) | {"compile_config": None}
    text = json.dumps(description)
    if '"__lambda__"' in text:
        return
    name = config.factory or config.name
    with same_random_numbers():
        rebuilt = _rebuilt(name, model, text, _objects(config, model, parse_json(text)))
        try:
            rebuilt.set_weights(model.get_weights())
        except ValueError as error:
            raise DistcnnError(
                f"{name} returned a model whose weights do not fit after saving and loading: "
                f"{_short(error)}{_forgotten(model, rebuilt)}; {_ADVICE}"
            ) from None
        _compare(name, model, rebuilt, images)


_ADVICE = "let get_config of each of your own layers return every argument of its __init__"


def _objects(config: ModelConfig, model: keras.Model, description: Any) -> dict[str, Any]:
    """Returns the user's own objects, and warns of those that no loading will find."""
    names = set(strings_in(description))
    found = own_objects(config.factory, names) if config.factory else {}
    for clash in sorted(set(named_like_keras(description))):
        log.warning(
            "warning: the class %s has the name of one of Keras' own, which loading may take "
            "instead; rename it",
            clash,
        )
    for layer in all_layers(model):
        kind = type(layer)
        if "<locals>" in kind.__qualname__ and kind.__name__ in names:
            log.warning(
                "warning: the layer class %s is defined inside a function, where loading the model "
                "does not find it; define it at the top of its module",
                kind.__name__,
            )
            found[kind.__name__] = kind
    return found


def _rebuilt(name: str, model: keras.Model, text: str, objects: Mapping[str, Any]) -> keras.Model:
    try:
        return _deserialised(text, {})
    except Exception:
        pass
    try:
        return _deserialised(text, objects)
    except Exception as error:
        reason = _short(error)
    for layer in _layers_in_config(model):
        try:
            _deserialised(json.dumps(keras.saving.serialize_keras_object(layer)), objects)
        except Exception as error:
            kind = type(layer).__name__
            raise DistcnnError(
                f"{name} returned a model that can be saved but not loaded: layer {layer.name!r} "
                f"({kind}): {_short(error)}; {_ADVICE}, and keep own classes and functions in the "
                "module of model.factory"
            ) from None
    raise DistcnnError(
        f"{name} returned a model that can be saved but not loaded: {reason}; {_ADVICE}"
    )


def _deserialised(text: str, objects: Mapping[str, Any]) -> Any:
    return keras.saving.deserialize_keras_object(parse_json(text), dict(objects), safe_mode=True)


def _layers_in_config(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yields the layers that a model's configuration lists, those of nested models too."""
    graph = functional_graph(model)
    for layer in model.layers if graph is not None else ():
        if isinstance(layer, keras.Model) and functional_graph(layer) is not None:
            yield from _layers_in_config(layer)
        else:
            yield layer


def _compare(name: str, model: keras.Model, rebuilt: keras.Model, images: np.ndarray) -> None:
    forgotten = _forgotten(model, rebuilt)
    differing = _first_difference(_values(model, images), _values(rebuilt, images))
    if differing is None:
        if forgotten:
            log.warning(
                "warning: %s returned a model that saving and loading changes%s; %s",
                name,
                forgotten,
                _ADVICE,
            )
    elif _first_difference(_values(model, images), _values(model, images)) is not None:
        log.warning(
            "warning: the outputs of %s vary by chance even in evaluation, so it cannot be checked "
            "whether saving keeps them",
            differing,
        )
    else:
        raise DistcnnError(
            f"{name} returned a model that is another one after saving and loading: the outputs "
            f"of {differing} differ{forgotten}; {_ADVICE}"
        )


_Values = list[tuple[str, np.ndarray]]


def _first_difference(expected: _Values, found: _Values) -> str | None:
    """Returns the first layer whose outputs differ, as words for a message."""
    if len(expected) != len(found):  # the graphs are not alike: only their outputs compare
        expected, found = expected[-1:], found[-1:]
    pairs = zip(expected, found, strict=True)
    return next((name for (name, a), (_, b) in pairs if not _close(a, b)), None)


def _values(model: keras.Model, images: np.ndarray) -> _Values:
    """Returns what each layer of a model computes, in order, and at last the model's output."""
    values: _Values = []
    outputs = _run(model, images, values)
    return [*values, ("the model", _numbers(outputs[0]))]


def _run(model: keras.Model, inputs: Any, values: _Values) -> list[Any]:
    """Calls the layers of a model, those of nested models too, and collects what they return."""
    graph = functional_graph(model)
    if graph is None or len(graph.inputs) != 1:
        return keras.tree.flatten(model(inputs, training=False))
    known = {id(graph.inputs[0]): inputs}
    for call in calls_in_order(graph):
        operation = call.operation
        arguments, keywords = call.arguments.fill_in(known)
        if isinstance(operation, keras.Model) and len(call.input_tensors) == 1:
            outputs = _run(operation, known[id(call.input_tensors[0])], values)
        else:
            outputs = keras.tree.flatten(
                operation(*arguments, **keywords | in_evaluation(operation))
            )
        label = f"layer {operation.name!r} ({type(operation).__name__})"
        values.extend((label, _numbers(output)) for output in outputs)
        known.update(zip(map(id, call.outputs), outputs, strict=True))
    return [known[id(tensor)] for tensor in graph.outputs]


def _numbers(tensor: Any) -> np.ndarray:
    """Returns some thousand of a tensor's values, evenly spread."""
    values = np.asarray(keras.ops.convert_to_numpy(keras.ops.cast(tensor, "float32"))).ravel()
    return values[:: 1 + values.size // _COMPARED].copy()


def _close(a: np.ndarray, b: np.ndarray) -> bool:
    if a.shape != b.shape:
        return False
    scale = float(np.abs(a[np.isfinite(a)]).max(initial=0.0))
    return bool(np.allclose(a, b, rtol=1e-3, atol=1e-3 * scale, equal_nan=True))


def _forgotten(model: keras.Model, rebuilt: keras.Model) -> str:
    """Returns which plain attributes of the user's own layers differ, to be put into a message."""
    pairs = zip(all_layers(model), all_layers(rebuilt), strict=False)
    for old, new in pairs:
        if type(old) is not type(new) or type(old).__module__.startswith("keras."):
            continue
        for key, value in vars(old).items():
            now = vars(new).get(key, value)
            plain = isinstance(value, int | float | str) and type(now) is type(value)
            if plain and now != value and not key.startswith("_") and key != "name":
                kind = type(old).__name__
                return f" ({key} of layer {old.name!r} ({kind}) is {value!r}, then {now!r})"
    return ""


def _short(error: Exception) -> str:
    """Returns the cause of an error, without the configuration that Keras prints before it."""
    cause = str(error).rpartition("Exception encountered: ")[2].partition("Full object config")[0]
    return " ".join(cause.split())[:300].rstrip(" .") or type(error).__name__


@contextlib.contextmanager
def same_random_numbers() -> Iterator[None]:
    """Lets the random numbers of Python and NumPy, Keras' seeds, go on as if nothing was drawn."""
    python, numpy = random.getstate(), np.random.get_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
