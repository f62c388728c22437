"""TensorFlow's SavedModel: for TensorFlow Serving, Java, Go and C++."""

import functools
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from distcnn.inference.exporting.decoding import decode_files
from distcnn.inference.exporting.program import INPUT, Program
from distcnn.inference.exporting.runtime import Run

LABELS = "labels"
_FEW = 1024
"""Weights of fewer numbers are kept in float32 with int8."""


def write(
    program: Program, path: Path, precision: str, calibration: np.ndarray, *, bytes_in: bool = False
) -> None:
    """Writes a SavedModel whose weights are stored in a precision; it computes in float32.

    Args:
        program: What to export.
        path: The folder to write.
        precision: float32, float16 or int8, in which the kernels are stored.
        calibration: Not needed, since only weights are quantised.
        bytes_in: Whether the input is the bytes of image files. Labels are then returned too: the
            most probable class, or all those above 0.5 with "|" between them.
    """
    module = tf.Module()
    stored = [
        (variable, _Stored(variable.value, precision)) for variable in program.layer.variables
    ]
    module.stored = [each.parts for _, each in stored]
    names = tf.Variable(program.classes, trainable=False)
    module.names = names

    def classify(images: tf.Tensor) -> dict[str, tf.Tensor]:
        weights = [(variable, each.value()) for variable, each in stored]
        with keras.StatelessScope(state_mapping=weights):
            return {program.output: program.layer(images)}

    def classify_files(contents: tf.Tensor) -> dict[str, tf.Tensor]:
        found = classify(decode_files(contents, program.image_shape, program.framing))
        if program.task == "regression":
            return found
        if program.task == "multilabel":
            has = found[program.output] > 0.5
            chosen = tf.ragged.boolean_mask(tf.broadcast_to(names, tf.shape(has)), has)
            return found | {LABELS: tf.strings.reduce_join(chosen, axis=1, separator="|")}
        best = tf.argmax(found[program.output], axis=1)
        return found | {LABELS: tf.gather(names, best)}

    pixels = tf.TensorSpec((None, *program.image_shape), tf.uint8, name=INPUT)
    files = tf.TensorSpec((None,), tf.string, name=INPUT)
    serve, signature = (classify_files, files) if bytes_in else (classify, pixels)
    module.serve = tf.function(serve, input_signature=[signature], autograph=False)
    tf.saved_model.save(module, str(path), signatures=module.serve)


class _Stored:
    """One variable in the precision in which it is stored."""

    def __init__(self, value: Any, precision: str) -> None:
        numbers = np.asarray(value)
        is_float = np.issubdtype(numbers.dtype, np.floating)
        self._scale: tf.Variable | None = None
        if precision == "int8" and is_float and numbers.ndim > 1 and numbers.size >= _FEW:
            # A depthwise kernel has its channels in the last but one dimension.
            kept = 1 if numbers.shape[-1] > 1 else 2
            axes = tuple(range(numbers.ndim - kept))
            scale = np.abs(numbers).max(axis=axes, keepdims=True) / 127
            scale = np.where(scale > 0, scale, 1).astype(np.float32)
            numbers = np.rint(numbers / scale).astype(np.int8)
            self._scale = tf.Variable(scale, trainable=False)
        elif precision == "float16" and is_float:
            numbers = np.clip(numbers, -65504, 65504).astype(np.float16)
        self._dtype = value.dtype
        self._variable = tf.Variable(numbers, trainable=False)

    @property
    def parts(self) -> list[tf.Variable]:
        """The variables to save."""
        return [part for part in (self._variable, self._scale) if part is not None]

    def value(self) -> tf.Tensor:
        """Returns the variable's value in its own type; works inside a graph."""
        value = tf.cast(self._variable, self._dtype)
        return value if self._scale is None else value * self._scale


def load(path: Path, precision: str, output: str) -> Run:
    """Loads a SavedModel anew; the function takes images, or the bytes of files."""
    return functools.partial(_run, tf.saved_model.load(str(path)), output)


def _run(loaded: Any, output: str, images: np.ndarray) -> np.ndarray:
    found = loaded.signatures["serving_default"](**{INPUT: tf.constant(images)})
    outputs: np.ndarray = found[output].numpy()
    return outputs


def runtime() -> str:
    """Returns the name and version of the library that runs it."""
    return f"tensorflow {tf.__version__}"
