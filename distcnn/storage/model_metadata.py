"""What the Keras format does not record about a classifier; read without Keras."""

import json
import zipfile
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from distcnn.config.recipe import preprocessing_of_run, settings_of_run
from distcnn.config.sections.train import TrainConfig
from distcnn.config.task import Task
from distcnn.runtime.files import open_regular, parse_json

_MEMBER = "distcnn.json"
_MOST_BYTES = 2**20


@dataclass(frozen=True)
class ModelMetadata:
    """What the Keras format does not record about a classifier.

    It is an additional member of the archive, which plain Keras ignores.

    Attributes:
        classes: Class names in the order of the outputs; empty if unknown.
        pixels: Range of the pixels that the model expects.
        logits: Whether the model returns logits rather than probabilities.
        task: What the labels are: one class for each image, any number of them, or numbers.
        test_flip: Whether outputs are averaged over an image and its mirror image.
        test_shift: Pixels by which images are moved for further views that outputs are averaged
            over, or 0.
        preprocessing: Keys of the data section that say how images become the model's input; see
            `distcnn.config.recipe.preprocessing_of_run`.
        division: Seed and fractions by which test and validation images were drawn from data
            without splits; empty otherwise.
    """

    classes: tuple[str, ...] = ()
    pixels: Literal["unit", "signed", "byte"] = "unit"
    logits: bool = False
    task: Task = "classification"
    test_flip: bool = False
    test_shift: int = 0
    preprocessing: dict[str, Any] = field(default_factory=dict)
    division: dict[str, Any] = field(default_factory=dict)

    def write(self, archive: zipfile.ZipFile) -> None:
        """Adds the metadata to a `.keras` file."""
        archive.writestr(_MEMBER, json.dumps(asdict(self)))

    @classmethod
    def read(cls, archive: zipfile.ZipFile) -> "ModelMetadata | None":
        """Returns the metadata of a `.keras` file, or None if plain Keras wrote it.

        Raises:
            ValueError: If it is damaged.
        """
        if _MEMBER not in archive.namelist():
            return None
        size = archive.getinfo(_MEMBER).file_size
        if size > _MOST_BYTES:
            raise ValueError(f"its {_MEMBER} has {size:,} bytes")
        content: dict[str, Any] = parse_json(archive.read(_MEMBER))
        return cls(**{**content, "classes": tuple(content["classes"])})


def preprocessing_of(path: Path) -> dict[str, Any]:
    """Returns how images became the input of a model: values of the data section by key.

    Args:
        path: Run directory, or a `.keras` file, which may have been copied out of its run. Any
            other file has none; whatever loads the model reports it.
    """
    settings = settings_of_run(path)
    if settings:
        return preprocessing_of_run(settings)
    metadata = _metadata_of(path)
    return metadata.preprocessing if metadata else {}


def division_of(path: Path) -> tuple[dict[str, Any], int]:
    """Returns how images without splits were divided for a model, so that they are again.

    Args:
        path: As for `preprocessing_of`.

    Returns:
        Fractions, as values of the data section by key, and the seed of the draw.
    """
    settings = settings_of_run(path)
    if settings:
        keys = ("test_split", "validation_split")
        division = {key: settings[f"data.{key}"] for key in keys if settings.get(f"data.{key}")}
        return division, settings.get("train.seed", TrainConfig.seed)
    metadata = _metadata_of(path)
    division = dict(metadata.division) if metadata else {}
    return division, division.pop("seed", TrainConfig.seed)


def _metadata_of(path: Path) -> ModelMetadata | None:
    if not path.is_file():
        return None
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            return ModelMetadata.read(archive)
    except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
        return None
