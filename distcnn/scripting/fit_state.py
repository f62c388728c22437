"""The state of a model in training, of random numbers, and both as arrays for a checkpoint."""

import json
import random
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.distribute.base import Backend
from distcnn.engine.optimizers import optimizers_of
from distcnn.runtime.files import parse_json
from distcnn.runtime.keras_fit import global_seed, operation_seeds, set_global_seed
from distcnn.runtime.keras_steps import optimized_variables
from distcnn.scripting.plain_state import decode, encode
from distcnn.storage.checkpoint import NAMES, restore, snapshot

_METRICS = "metric_parts"
_DESCRIPTION = "description"

Variables = Callable[[keras.Model], list[Any]]
"""From a model to some of its variables."""


class ModelState:
    """Saves and restores a compiled model, its optimizers and its metrics.

    Args:
        model: The model.
        backend: Runs the replicas.
        metric_variables: Returns the variables of the model's metrics.
    """

    def __init__(self, model: keras.Model, backend: Backend, metric_variables: Variables) -> None:
        self._model = model
        self._backend = backend
        self._metric_variables = metric_variables

    def save(self, buffers: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], Any]:
        """Returns arrays by name, and a description for JSON; called in all processes together.

        Args:
            buffers: What this has returned before and nobody needs any more, to use its memory.
        """
        groups, metrics = self._groups(), self._metrics()
        own = [np.asarray(v, np.float64).ravel() for v in metrics]
        parts = np.concatenate([*own, np.zeros(0)])
        # Under tf.distribute a state that is read is the sum over all replicas already.
        parts = parts[None] if tf.distribute.has_strategy() else self._backend.gather(parts)
        places = {id(v): place for place, v in enumerate(groups["model"])}
        trained = [
            [places[id(v)] for v in optimized_variables(optimizer) if id(v) in places]
            for optimizer in optimizers_of(self._model)
        ]
        arrays = {name: _storable(array) for name, array in snapshot(groups, buffers).items()}
        return {**arrays, _METRICS: parts}, trained

    def restore(self, arrays: Mapping[str, np.ndarray], trained: Any, origin: str) -> None:
        """Restores what `save` returned.

        Raises:
            DistcnnError: It is the state of another model.
        """
        variables = self._groups()["model"]
        for optimizer, places in zip(optimizers_of(self._model), trained, strict=False):
            if not optimizer.built and places:
                optimizer.build([variables[place] for place in places])
        groups = self._groups()
        starts = (*(f"{name}/" for name in groups), NAMES)
        restore(groups, {k: a for k, a in arrays.items() if k.startswith(starts)}, origin)
        self._restore_metrics(arrays[_METRICS])

    def _restore_metrics(self, parts: np.ndarray) -> None:
        """Gives this process its part of the metrics' states, which are sums, or rank 0 all."""
        backend = self._backend
        if tf.distribute.has_strategy():
            own = parts.sum(0)
        elif len(parts) == backend.size:
            own = parts[backend.rank]
        else:
            own = parts.sum(0) * backend.is_chief
        start = 0
        for variable in self._metrics():
            count = int(np.prod(variable.shape))
            variable.assign(own[start : start + count].reshape(variable.shape))
            start += count

    def _groups(self) -> dict[str, list[Any]]:
        metrics = {id(v) for v in self._metrics()}
        model = [v for v in self._model.variables if v.dtype != "string" and id(v) not in metrics]
        optimizers = {
            f"optimizer{i}": list(o.variables) for i, o in enumerate(optimizers_of(self._model))
        }
        return {"model": model, **optimizers}

    def _metrics(self) -> list[Any]:
        return [v for v in self._metric_variables(self._model) if v.dtype != "string"]


class RandomState:
    """The states of the random numbers that belong to no model."""

    @staticmethod
    def save() -> dict[str, Any]:
        """Returns the states of Python's, NumPy's, Keras' and TensorFlow's global generators."""
        seeds = operation_seeds()
        return {
            "python": random.getstate(),
            "numpy": np.random.get_state(legacy=False),
            "keras": global_seed(),
            "operations": seeds.getstate() if seeds is not None else None,
        }

    @staticmethod
    def restore(state: Mapping[str, Any]) -> None:
        """Restores what `save` returned, maybe without Python's or NumPy's state."""
        set_global_seed(state["keras"])  # first, as it may draw from Python's to create one
        if "python" in state:
            random.setstate(state["python"])
        if "numpy" in state:
            np.random.set_state(state["numpy"])
        seeds = operation_seeds()
        if state.get("operations") is not None and seeds is not None:
            seeds.setstate(state["operations"])


def pack(description: Mapping[str, Any], arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds a description, of values that `plain_state` can encode, to arrays."""
    text = json.dumps(encode(dict(description), arrays)).encode()
    return {**arrays, _DESCRIPTION: np.frombuffer(text, np.uint8)}


def unpack(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the description that `pack` has added."""
    found: dict[str, Any] = decode(parse_json(arrays[_DESCRIPTION].tobytes()), arrays)
    return found


def from_chief(arrays: Mapping[str, np.ndarray], backend: Backend) -> dict[str, np.ndarray]:
    """Returns the chief's arrays, of any type, in every process."""
    if backend.size == 1:
        return dict(arrays)
    layout = [[name, list(a.shape), a.dtype.str] for name, a in arrays.items()]
    found: dict[str, np.ndarray] = {}
    for name, shape, dtype in backend.broadcast_object(layout):
        exact = np.dtype(dtype).kind in "bf" or np.dtype(dtype).itemsize < 8
        carrier = np.dtype(dtype if exact and np.dtype(dtype).kind in "biuf" else np.uint8)
        own = np.zeros(shape, dtype) if not backend.is_chief else np.asarray(arrays[name])
        flat = np.ascontiguousarray(own).reshape(-1).view(carrier)
        shared = flat
        if flat.size:
            shared = backend.broadcast(flat.astype(np.float64)).astype(carrier)
        found[name] = shared.view(dtype).reshape(shape)
    return found


def _storable(array: np.ndarray) -> np.ndarray:
    """Returns an array of a type that a NumPy file can hold: bfloat16 becomes float32."""
    return array if array.dtype.kind in "biufSU" else array.astype(np.float32)
