"""Rebuilds a model of mixed precision in float32."""

import json
from collections.abc import Mapping
from typing import Any

import keras

from distcnn.runtime.files import parse_json
from distcnn.runtime.keras_internals import all_layers

_SHORT_TYPES = ("bfloat16", "float16", "mixed_bfloat16", "mixed_float16")


def short_policy(model: keras.Model) -> str | None:
    """Returns the dtype policy of the first layer that computes in 16 bits, None without one."""
    for layer in all_layers(model):
        if getattr(layer, "compute_dtype", None) in ("bfloat16", "float16"):
            return str(layer.dtype_policy.name)
    return None


def in_float32(
    model: keras.Model, objects: Mapping[str, Any] | None = None, *, safe_mode: bool = True
) -> keras.Model:
    """Returns a model that computes the same in float32, with a copy of the weights.

    With mixed precision the weights are float32 already, so that nothing is lost.

    Args:
        model: A built model of any precision. One without layers in 16 bits is returned unchanged.
        objects: The user's own classes and functions, by name.
        safe_mode: Whether to refuse Python lambdas.

    Raises:
        Exception: Whatever Keras raises if the model cannot be rebuilt from its configuration.
    """
    if short_policy(model) is None:
        return model
    description = keras.saving.serialize_keras_object(model) | {"compile_config": None}
    rebuilt = keras.saving.deserialize_keras_object(
        _widened(parse_json(json.dumps(description))), dict(objects or {}), safe_mode=safe_mode
    )
    rebuilt.set_weights(model.get_weights())
    return rebuilt


def _widened(config: Any) -> Any:
    """Returns a model's configuration with every 16-bit type replaced."""
    if isinstance(config, list):
        return [_widened(value) for value in config]
    if not isinstance(config, dict):
        return config
    if config.get("class_name") == "DTypePolicy" and isinstance(config.get("config"), dict):
        name = config["config"].get("name")
        if name in _SHORT_TYPES:
            return config | {"config": config["config"] | {"name": "float32"}}
    return {
        key: "float32" if key == "dtype" and value in _SHORT_TYPES else _widened(value)
        for key, value in config.items()
    }
