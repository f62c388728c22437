"""Prepares a process of the proof, and records what it has trained."""

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import keras
import numpy as np

from distcnn.proving.record import METRIC, Record
from distcnn.runtime.cluster import find_cluster
from distcnn.runtime.keras_hooks import DROPOUT, POLICY_TYPES, Hooks
from distcnn.runtime.keras_internals import all_layers


def prepare(hooks: Hooks, float_type: str) -> None:
    """Makes models compute in one float type, whatever their layers ask for, without dropout."""

    def make(original: Any) -> Any:
        def types(policy: Any, name: str) -> tuple[str, str]:
            compute, variable = original(policy, name)
            is_float = keras.backend.is_float_dtype(compute)
            return (float_type, float_type) if is_float else (compute, variable)

        return types

    keras.config.set_floatx(float_type)
    hooks.replace(POLICY_TYPES, make)
    hooks.replace(DROPOUT, lambda original: lambda inputs, *unused, **unused_keywords: inputs)


def strategy_of_process() -> str:
    """Returns the strategy of this process: the single one uses one device."""
    return "one_device" if find_cluster(os.environ).size == 1 else "horovod"


def named(
    kind: str, variables: Iterable[Any], owners: Iterable[Any] | None = None
) -> list[tuple[str, Any]]:
    """Returns variables with their names.

    Args:
        kind: How the names begin.
        variables: Keras variables.
        owners: The variables whose paths name them, by default they themselves.
    """
    variables = list(variables)
    pairs = zip(owners or variables, variables, strict=True)
    return [(f"{kind}{owner.path}", variable) for owner, variable in pairs]


def record(
    out: Path,
    model: keras.Model,
    variables: Iterable[tuple[str, Any]],
    metrics: Mapping[str, Any],
    *,
    steps: int,
    sync_batchnorm: bool,
) -> None:
    """Writes what has been trained, in rank 0.

    Args:
        out: The file.
        model: The model.
        variables: Variables with their names; only those of floats are kept.
        metrics: Numbers or arrays by name.
        steps: Number of steps.
        sync_batchnorm: Whether all batch normalisation used the rows of all workers.
    """
    if not find_cluster(os.environ).is_chief:
        return
    arrays: dict[str, np.ndarray] = {}
    for name, variable in variables:
        if keras.backend.is_float_dtype(variable.dtype):
            key = f"{name} ({len(arrays)})" if name in arrays else name  # paths may be equal
            arrays[key] = keras.ops.convert_to_numpy(variable).astype(np.float64)
    arrays |= {f"{METRIC}{n}": np.asarray(value, np.float64) for n, value in metrics.items()}
    normalises = not sync_batchnorm and any(
        isinstance(layer, keras.layers.BatchNormalization) and not layer.synchronized
        for layer in all_layers(model)
    )
    Record(arrays, steps, normalises).save(out)
