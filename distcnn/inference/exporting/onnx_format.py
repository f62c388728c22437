"""ONNX, run by ONNX Runtime."""

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import tf2onnx

from distcnn.inference.exporting.program import INPUT, Program
from distcnn.inference.exporting.runtime import Run
from distcnn.runtime.tf2onnx_internals import mend_tf2onnx

_OPSET = 18


def write(program: Program, path: Path, precision: str, calibration: np.ndarray) -> None:
    """Writes an ONNX file; with int8 it is quantised to 8 bits by calibration.

    Args:
        program: What to export.
        path: The file to write.
        precision: float32, float16 or int8.
        calibration: Images that int8 is calibrated on, uint8 `(count, height, width, channels)`.
    """
    mend_tf2onnx()
    function = program.function()
    model, _ = tf2onnx.convert.from_function(
        function, input_signature=function.input_signature, opset=_OPSET
    )
    if precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    if precision == "int8":
        model = _quantised(model, path, calibration)
    onnx.helper.set_model_props(model, {"classes": json.dumps(program.classes)})
    onnx.save(model, path)


def _quantised(model: Any, path: Path, calibration: np.ndarray) -> Any:
    from onnxruntime import quantization

    source, result = path.with_suffix(".source"), path.with_suffix(".quantised")
    prepared = path.with_suffix(".prepared")
    onnx.save(model, source)
    quantization.shape_inference.quant_pre_process(
        str(source), str(prepared), skip_symbolic_shape=True
    )
    quantization.quantize_static(
        str(prepared),
        str(result),
        _Calibration(calibration),
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
        activation_type=quantization.QuantType.QUInt8,
    )
    quantised = onnx.load(result)
    for file in (source, prepared, result):
        file.unlink()
    return quantised


class _Calibration:
    """Hands out the images in the way that ONNX Runtime reads them."""

    def __init__(self, images: np.ndarray) -> None:
        self._batches: Iterator[np.ndarray] = iter(np.array_split(images, -(-len(images) // 16)))

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Returns the next batch, or None after the last one."""
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


def load(path: Path, precision: str, output: str) -> Run:
    """Loads an ONNX file."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return functools.partial(_run, session, output)


def _run(session: Any, output: str, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = session.run([output], {INPUT: images})[0]
    return found


def runtime() -> str:
    """Returns the name and version of the library that runs it."""
    return f"onnxruntime {onnxruntime.__version__}"
