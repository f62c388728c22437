"""LiteRT, formerly TensorFlow Lite: for phones and small devices."""

import functools
import importlib.metadata
import importlib.util
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from distcnn.inference.exporting import savedmodel_format
from distcnn.inference.exporting.program import INPUT, Program
from distcnn.inference.exporting.runtime import Run


def write(program: Program, path: Path, precision: str, calibration: np.ndarray) -> None:
    """Writes a `.tflite` file; with int8 it is quantised to 8 bits by calibration.

    Args:
        program: What to export.
        path: The file to write.
        precision: float32, float16 or int8.
        calibration: Images that int8 is calibrated on, uint8 `(count, height, width, channels)`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        savedmodel_format.write(program, Path(folder), "float32", calibration)
        converter = tf.lite.TFLiteConverter.from_saved_model(folder)
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision == "int8":
            converter.representative_dataset = functools.partial(_one_by_one, calibration)
        with warnings.catch_warnings():  # TensorFlow's own calibration uses what it deprecates
            warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
            path.write_bytes(converter.convert())


def _one_by_one(images: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    for image in images:
        yield {INPUT: image[np.newaxis]}


def load(path: Path, precision: str, output: str) -> Run:
    """Loads a `.tflite` file by LiteRT; by TensorFlow's own interpreter where that is missing."""
    if importlib.util.find_spec("ai_edge_litert"):
        from ai_edge_litert.interpreter import Interpreter
    else:
        Interpreter = tf.lite.Interpreter  # noqa: N806
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"\s*Warning: tf.lite.Interpreter is deprecated")
        runner = Interpreter(str(path)).get_signature_runner()
    return functools.partial(_run, runner, output)


def _run(runner: Any, output: str, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = runner(**{INPUT: images})[output]
    return found


def runtime() -> str:
    """Returns the name and version of the library that runs it."""
    if importlib.util.find_spec("ai_edge_litert"):
        return f"ai-edge-litert {importlib.metadata.version('ai-edge-litert')}"
    return f"tensorflow.lite {tf.__version__}"
