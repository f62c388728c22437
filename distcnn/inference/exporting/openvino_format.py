"""OpenVINO: for Intel's processors."""

import contextlib
import functools
import io
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from distcnn.inference.exporting import savedmodel_format
from distcnn.inference.exporting.program import INPUT, Program
from distcnn.inference.exporting.runtime import Run


def write(program: Program, path: Path, precision: str, calibration: np.ndarray) -> None:
    """Writes `.xml` and `.bin`; with int8 it is quantised to 8 bits by calibration.

    Args:
        program: What to export.
        path: The `.xml` file to write.
        precision: float32, float16 or int8.
        calibration: Images that int8 is calibrated on, uint8 `(count, height, width, channels)`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        savedmodel_format.write(program, Path(folder), "float32", calibration)
        model = openvino.convert_model(folder)
        model.inputs[0].get_tensor().set_names({INPUT})
        model.outputs[0].get_tensor().set_names({program.output})
        if precision == "int8":
            import nncf

            batches = [{INPUT: image[np.newaxis]} for image in calibration]
            with contextlib.redirect_stdout(io.StringIO()):  # progress bars
                model = nncf.quantize(
                    model,
                    nncf.Dataset(batches),
                    preset=nncf.QuantizationPreset.MIXED,
                    subset_size=len(batches),
                )
        labels = (name.replace(" ", "_") for name in program.classes)
        model.set_rt_info(" ".join(labels), ["model_info", "labels"])
        openvino.save_model(model, path, compress_to_fp16=precision == "float16")


def load(path: Path, precision: str, output: str) -> Run:
    """Loads the files for the CPU; what is not in 8 bits is computed in float32."""
    settings = {"INFERENCE_PRECISION_HINT": "f32"}  # default on some processors: bfloat16
    compiled = openvino.Core().compile_model(path, "CPU", settings)
    return functools.partial(_run, compiled, output)


def _run(model: Any, output: str, images: np.ndarray) -> np.ndarray:
    found: np.ndarray = model(images)[output]
    return found


def runtime() -> str:
    """Returns the name and version of the library that runs it."""
    return f"openvino {openvino.__version__.partition('-')[0]}"
