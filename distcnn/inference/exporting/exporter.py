"""Exports a trained classifier and compares every file with the Keras model."""

import importlib
import importlib.metadata
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.framing import evaluation_framing
from distcnn.errors import DataError, DistcnnError
from distcnn.inference.classifier import Classifier, load_classifier
from distcnn.inference.evaluation import require_same_task
from distcnn.inference.exporting.formats import FORMATS
from distcnn.inference.exporting.images import Images, RunImages
from distcnn.inference.exporting.parity import Parity, compare, outputs_of
from distcnn.inference.exporting.program import INPUT, Program, build_program
from distcnn.runtime.files import write_json, write_text
from distcnn.runtime.text import printable

log = logging.getLogger("distcnn")


@dataclass(frozen=True)
class Export:
    """A file that was written, and what its runtime makes of it.

    Attributes:
        format: Its name in `FORMATS`; `keras` for the model itself.
        precision: In which it is stored.
        path: The file or folder.
        size: Bytes of the file, or of all files of the format.
        runtime: The library that ran it, with its version.
        parity: The comparison with the Keras model in float32; None for that model itself.
    """

    format: str
    precision: str
    path: Path
    size: int
    runtime: str
    parity: Parity

    def as_dict(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "format": self.format,
            "precision": self.precision,
            "path": str(self.path),
            "bytes": self.size,
            "runtime": self.runtime,
            **asdict(self.parity),
        }


@dataclass(frozen=True)
class Report:
    """What was exported.

    Attributes:
        model: The model file.
        task: What the labels are.
        split: The split of the images that were compared.
        images: Their number.
        keras: The Keras model in float32, which is the reference, and the one of mixed precision
            that it was rebuilt from, if there is one.
        exports: The files that were written.
    """

    model: Path
    task: Task
    split: str
    images: int
    keras: list[Export]
    exports: list[Export]

    def as_dict(self) -> dict[str, Any]:
        """Returns the values for JSON."""
        return {
            "model": str(self.model),
            "task": self.task,
            "split": self.split,
            "images": self.images,
            "keras": [each.as_dict() for each in self.keras],
            "exports": [each.as_dict() for each in self.exports],
        }


def export_model(
    path: Path,
    out: Path,
    wanted: Sequence[tuple[str, str]],
    data: DataConfig,
    seed: int,
    *,
    bytes_in: bool = False,
    images: int = 1000,
    calibration_images: int = 256,
    trust: bool = False,
) -> Report:
    """Exports a classifier, and compares each export with the Keras model on the run's images.

    Args:
        path: Run directory, or a `.keras` file.
        out: The folder to write to.
        wanted: Formats and precisions.
        data: The data set to calibrate and compare on.
        seed: Seed of the validation and test images that were drawn.
        bytes_in: Whether the exports take the bytes of image files.
        images: How many images to compare, at most.
        calibration_images: How many images to calibrate int8 on, at most.
        trust: Whether to run code that the model needs, as for `load_classifier`.

    Raises:
        DistcnnError: If the model cannot be loaded or converted.
        DataError: If the images cannot be used, or have other classes than the model.
    """
    classifier = load_classifier(path, trust=trust)
    program = build_program(classifier, evaluation_framing(data), trust=trust)
    known = classifier.metadata.classes
    chosen = RunImages(data, seed, classifier.image_shape, known)
    require_same_task(chosen.task, program.task)
    _require_same_classes(chosen.classes, program.classes, known)
    compared = chosen.to_compare(images)
    quantised = any(precision == "int8" for _, precision in wanted)
    calibration = chosen.to_calibrate(calibration_images).pixels if quantised else compared.pixels
    serve = program.function()
    expected = outputs_of(lambda pixels: serve(pixels)[program.output].numpy(), compared.pixels)
    out.mkdir(parents=True, exist_ok=True)
    keras = _keras(classifier, program, compared, expected)
    report = Report(classifier.path, program.task, compared.split, len(compared), keras, [])
    for name, precision in wanted:
        file = _write(program, out, name, precision, calibration, bytes_in=bytes_in)
        report.exports.append(
            _compared(program, file, name, precision, compared, expected, bytes_in=bytes_in)
        )
    write_text(out / "labels.txt", "".join(f"{printable(name)}\n" for name in program.classes))
    write_json(out / "export.json", report.as_dict() | _description(program, bytes_in=bytes_in))
    return report


def _require_same_classes(
    found: tuple[str, ...], outputs: tuple[str, ...], known: tuple[str, ...]
) -> None:
    if len(found) != len(outputs) or (known and found != known):
        raise DataError(
            f"the data has the classes {', '.join(found[:10])}, the model has "
            f"{', '.join(outputs[:10])}; expected the same; name the data that it was trained on "
            "by --data.name and --data.dir"
        )


def _keras(
    classifier: Classifier, program: Program, images: Images, expected: np.ndarray
) -> list[Export]:
    """Compares the Keras model as it was trained with the one that is exported."""
    serve = program.function()
    trained = classifier.on_stored_pixels()

    def run_trained(pixels: np.ndarray) -> np.ndarray:
        found: np.ndarray = trained.predict_on_batch(pixels)
        return found

    def run_float32(pixels: np.ndarray) -> np.ndarray:
        found: np.ndarray = serve(pixels)[program.output].numpy()
        return found

    rows = [("float32", run_float32)]
    if program.trained_in is not None:
        rows.insert(0, (program.trained_in, run_trained))
    return [
        Export(
            "keras",
            precision,
            classifier.path,
            _size(classifier.path),
            _version("keras"),
            compare(run, images.pixels, expected, images.labels, program.task),
        )
        for precision, run in rows
    ]


def _write(
    program: Program,
    out: Path,
    name: str,
    precision: str,
    calibration: np.ndarray,
    *,
    bytes_in: bool,
) -> Path:
    """Writes one export, which replaces an older one of that name when it is whole."""
    entry = FORMATS[name]
    stem = "savedmodel" if not entry.suffix else "model"
    stem += ("" if precision == "float32" else f"_{precision}") + ("_bytes" if bytes_in else "")
    file = out / f"{stem}{entry.suffix}"
    partial = out / f".partial-{file.name}"
    _remove(partial)
    partial.mkdir()
    try:
        module = importlib.import_module(entry.module)
        options = {"bytes_in": True} if bytes_in else {}
        module.write(program, partial / file.name, precision, calibration, **options)
    except DistcnnError:
        raise
    except Exception as error:  # whatever a converter makes of the model
        log.debug("conversion to %s failed", name, exc_info=True)
        raise DistcnnError(
            f"the model cannot be converted to {name} with {precision}: {type(error).__name__}: "
            f"{' '.join(str(error).split())[:300]}"
        ) from error
    else:
        for each in partial.iterdir():
            _remove(out / each.name)
            each.rename(out / each.name)
    finally:
        _remove(partial)
    return file


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _compared(
    program: Program,
    file: Path,
    name: str,
    precision: str,
    images: Images,
    expected: np.ndarray,
    *,
    bytes_in: bool,
) -> Export:
    module = importlib.import_module(FORMATS[name].module)
    run = module.load(file, precision, program.output)
    inputs = images.files if bytes_in else images.pixels
    parity = compare(run, inputs, expected, images.labels, program.task)
    return Export(name, precision, file, _size(file), module.runtime(), parity)


def _size(file: Path) -> int:
    if file.is_dir():
        return sum(each.stat().st_size for each in file.rglob("*") if each.is_file())
    weights = file.with_suffix(".bin")
    extra = weights.stat().st_size if file.suffix == ".xml" and weights.exists() else 0
    return file.stat().st_size + extra


def _version(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


def _description(program: Program, *, bytes_in: bool) -> dict[str, Any]:
    """Returns what users of the exports need to know."""
    metadata = program.classifier.metadata
    framing = program.framing
    shape: list[Any] = ["batch"] if bytes_in else ["batch", *program.image_shape]
    return {
        "input": {
            "name": INPUT,
            "type": "bytes of a JPEG, PNG, GIF or BMP file" if bytes_in else "uint8",
            "shape": shape,
            "pixels": "stored values, 0 to 255, RGB or grey; they are scaled inside",
        },
        "output": {
            "name": program.output,
            "type": "float32",
            "shape": ["batch", len(program.classes)],
        },
        "task": program.task,
        "classes": list(program.classes),
        "resize": framing.resize,
        "crop_fraction": framing.crop_fraction,
        "test_flip": metadata.test_flip,
        "test_shift": metadata.test_shift,
    }
