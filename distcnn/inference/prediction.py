"""Classifies image files in batches."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from distcnn.config import DataConfig
from distcnn.config.task import Task
from distcnn.data.cache_location import cache_folder
from distcnn.data.file_list import FileList
from distcnn.data.folder import FolderSplit
from distcnn.data.framing import WHOLE, Framing, evaluation_framing
from distcnn.data.undecodable import name_all
from distcnn.data.verify import decode_all, explain
from distcnn.errors import DataError
from distcnn.inference.classifier import Classifier, load_classifier
from distcnn.inference.image_files import find_images
from distcnn.storage.model_metadata import preprocessing_of

log = logging.getLogger("distcnn")

_CHUNK_BYTES = 2**28


@dataclass(frozen=True)
class Prediction:
    """The classes of one image.

    Attributes:
        path: The image file.
        classes: Class names, or their numbers where the model does not know names.
        probabilities: float32 array of shape `(classes,)`; or the numbers, for a model of those.
        task: What they are.
    """

    path: Path
    classes: tuple[str, ...]
    probabilities: np.ndarray
    task: Task = "classification"

    def top(self, count: int = 1) -> list[tuple[str, float]]:
        """Returns the most probable classes with their probabilities, the best first.

        Of equally probable ones the first comes first, as in `Evaluation.predictions`.
        """
        best = np.argsort(-self.probabilities, kind="stable")[:count]
        return [(self.classes[index], float(self.probabilities[index])) for index in best]

    def labels(self) -> list[str]:
        """Returns the labels whose probability is above 0.5, the most probable first."""
        return [name for name, value in self.top(len(self.classes)) if value > 0.5]

    def numbers(self) -> dict[str, float]:
        """Returns the numbers by name, of a model of numbers."""
        return dict(zip(self.classes, map(float, self.probabilities), strict=True))


def predict(
    model: str | Path,
    images: str | Path | Sequence[str | Path],
    *,
    on_error: Literal["fail", "skip"] = "fail",
    batch_size: int = 512,
    trust: bool = False,
    data: DataConfig | None = None,
) -> list[Prediction]:
    """Classifies image files by a trained classifier.

    Args:
        model: Run directory, or a `.keras` file.
        images: Image files of any size and format, or folders of them.
        on_error: What to do with files that cannot be decoded: fail and name them, or skip them
            with a warning.
        batch_size: Images per step.
        trust: Whether to run code that the model needs: the module of the run's `model.factory`,
            and Python lambdas in the file.
        data: Its `resize`, `crop_fraction` and `reduced_decoding` say how images become the model's
            input. Default: as the run evaluated its images.

    Returns:
        A prediction for each image, in the order given.

    Raises:
        DistcnnError: If the model cannot be loaded, needs code that is not trusted, or has fewer
            than two classes.
        DataError: If an image is missing or cannot be decoded.
    """
    paths = find_images([images] if isinstance(images, str | Path) else images)
    classifier = load_classifier(Path(model), trust=trust)
    data = data or DataConfig(**preprocessing_of(Path(model)))
    framing = evaluation_framing(data)
    probabilities, errors = predict_files(classifier, paths, batch_size, framing)
    if errors and on_error == "fail":
        raise DataError(
            f"{len(errors)} of {len(paths)} files cannot be decoded: "
            f"{name_all(list(errors.values()), cache_folder().parent)}; remove them, or pass "
            "--on_error skip"
        )
    for description in errors.values():
        log.warning("warning: skipped %s", description)
    numbers = tuple(str(index) for index in range(probabilities.shape[1]))
    classes = classifier.metadata.classes or numbers
    decoded = [path for path in paths if path not in errors]
    return [
        Prediction(path, classes, values, classifier.metadata.task)
        for path, values in zip(decoded, probabilities, strict=True)
    ]


def predict_files(
    classifier: Classifier, paths: Sequence[Path], batch_size: int, framing: Framing = WHOLE
) -> tuple[np.ndarray, dict[Path, str]]:
    """Returns the class probabilities of image files.

    Args:
        classifier: The model.
        paths: Image files of any size and format.
        batch_size: Images per step.
        framing: How images become the model's input.

    Returns:
        float32 array of shape `(readable files, classes)` in the order of `paths`, and for each
        file that cannot be decoded its description as `path (reason)`.
    """
    model = classifier.on_stored_pixels()
    shape = classifier.image_shape
    chunk = max(batch_size, _CHUNK_BYTES // int(np.prod(shape)))
    parts: list[np.ndarray] = []
    errors: dict[Path, str] = {}
    for start in range(0, len(paths), chunk):
        files = paths[start : start + chunk]
        split = FolderSplit(FileList.of(files), np.zeros(len(files), np.int64))
        resized = split.resized(shape, framing)
        images = np.zeros((len(files), *shape), np.uint8)
        bad = decode_all(resized, images.__setitem__)
        errors |= zip([files[index] for index in bad], explain(resized, bad), strict=True)
        good = np.delete(images, bad, axis=0)
        if len(good):
            parts.append(model.predict(good, batch_size=batch_size, verbose=0))
    outputs = classifier.model.output_shape[-1]
    return np.concatenate([np.zeros((0, outputs), np.float32), *parts]), errors
