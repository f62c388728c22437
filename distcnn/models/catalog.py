"""The built-in models by name. To add one, write its function and register it here."""

from typing import Any

MODELS: dict[str, Any] = {
    "airbench": "distcnn.models.airbench:airbench",
    "article": "distcnn.models.article:article",
    "compact": "distcnn.models.compact:compact",
}
"""Functions of `(input_shape, num_classes, ...)` that return an uncompiled `keras.Model`, or the
import paths of such functions."""
