"""`model.keras`: the user's own model in Keras' format, with a note on what its classes mean.

The note is one more member of the archive, which plain Keras passes over.
"""

import json
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import keras

from distcnn.errors import DistcnnError
from distcnn.runtime.files import replacing

_METADATA = "distcnn.json"


@dataclass(frozen=True)
class ModelMetadata:
    """What a saved classifier does not say of itself.

    Attributes:
        classes: Class names in the order of the outputs; empty if unknown.
        pixels: Range of the pixels that it expects.
        logits: Whether it returns logits rather than probabilities.
        test_flip: Whether its outputs are averaged over an image and its mirror image.
    """

    classes: tuple[str, ...] = ()
    pixels: Literal["unit", "signed", "byte"] = "unit"
    logits: bool = False
    test_flip: bool = False


def save_model(path: Path, model: keras.Model, metadata: ModelMetadata) -> None:
    """Saves a classifier whole or not at all, without the optimizer's state.

    Args:
        path: File to write, ending in `.keras`.
        model: The classifier.
        metadata: What it does not say of itself.
    """
    with replacing(path) as partial:
        model.save(partial, include_optimizer=False)
        with zipfile.ZipFile(partial, "a") as archive:
            archive.writestr(_METADATA, json.dumps(asdict(metadata)))


def find_model(path: Path) -> Path:
    """Returns the model file of a run directory, or the file itself.

    Raises:
        DistcnnError: If there is none.
    """
    if path.is_dir():
        file = path / "model.keras"
        if not file.exists():
            raise DistcnnError(
                f"{path} holds no model.keras; expected a finished run (the same training command "
                "goes on with an unfinished one)"
            )
        return file
    if not path.exists():
        raise DistcnnError(f"{path} does not exist; expected a run directory or a model.keras")
    return path


def load_model(
    path: Path, custom_objects: Mapping[str, type] | None = None
) -> tuple[keras.Model, ModelMetadata | None]:
    """Loads a classifier.

    Args:
        path: A `.keras` file.
        custom_objects: Layers of the user's own, by name.

    Returns:
        The model and its note, None for a file that plain Keras wrote.

    Raises:
        DistcnnError: If the file is not a Keras model, or takes something other than images.
    """
    metadata: ModelMetadata | None = None
    try:
        with zipfile.ZipFile(path) as archive:
            if _METADATA in archive.namelist():
                content: dict[str, Any] = json.loads(archive.read(_METADATA))
                metadata = ModelMetadata(**{**content, "classes": tuple(content["classes"])})
        model = keras.saving.load_model(path, dict(custom_objects or {}), compile=False)
    except (ValueError, TypeError, KeyError, OSError, zipfile.BadZipFile, zlib.error) as error:
        cause = str(error).rpartition("Exception encountered: ")[2]  # before it, the whole model
        reason = " ".join(cause.split())[:300]
        raise DistcnnError(f"{path} is not a model that Keras can load: {reason}") from None
    return model, metadata
