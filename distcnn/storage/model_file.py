"""`model.keras`: the user's own model in Keras' format, with metadata about inputs and outputs."""

import contextlib
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import keras

from distcnn.errors import DistcnnError
from distcnn.runtime.files import open_regular, parse_json, replacing
from distcnn.storage.model_metadata import ModelMetadata

_MOST_EXPANSION = 100
"""How many times larger a file may become; Keras does not compress, but others may have."""


def save_model(path: Path, model: keras.Model, metadata: ModelMetadata) -> None:
    """Saves a classifier atomically, without the optimizer's state.

    Args:
        path: File to write, ending in `.keras`.
        model: The classifier.
        metadata: The metadata to store with it.
    """
    with replacing(path) as partial:
        model.save(partial, include_optimizer=False)
        with zipfile.ZipFile(partial, "a") as archive:
            metadata.write(archive)


def find_model(path: Path) -> Path:
    """Returns the model file of a run directory, or the path itself if it is a file.

    Raises:
        DistcnnError: If there is no model file.
    """
    if path.is_dir():
        file = path / "model.keras"
        if not file.exists():
            raise DistcnnError(
                f"{path} holds no model.keras; expected a finished run (repeat the training "
                "command to continue an unfinished one)"
            )
        return file
    if not path.exists():
        raise DistcnnError(f"{path} does not exist; expected a run directory or a model.keras")
    return path


def read_description(path: Path) -> dict[str, Any]:
    """Returns the configuration of the model in a `.keras` file; runs no code.

    Raises:
        DistcnnError: If the file is not one that Keras wrote.
    """
    with _as_one_line(path), open_regular(path) as file, zipfile.ZipFile(file) as archive:
        _require_bounded(archive, path.stat().st_size)
        description: dict[str, Any] = parse_json(archive.read("config.json"))
    return description


def load_model(
    path: Path, custom_objects: Mapping[str, Any] | None = None, *, safe_mode: bool = True
) -> tuple[keras.Model, ModelMetadata | None]:
    """Loads a classifier.

    Args:
        path: A `.keras` file.
        custom_objects: The user's own classes and functions, by name.
        safe_mode: Whether to refuse Python lambdas, whose code is in the file.

    Returns:
        The model and its metadata, which is None for a file that plain Keras wrote.

    Raises:
        DistcnnError: If the file is not a model that Keras can load.
    """
    metadata: ModelMetadata | None = None
    with _as_one_line(path):
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            _require_bounded(archive, path.stat().st_size)
            metadata = ModelMetadata.read(archive)
        model = keras.saving.load_model(
            path, dict(custom_objects or {}), compile=False, safe_mode=safe_mode
        )
    return model, metadata


def _require_bounded(archive: zipfile.ZipFile, size: int) -> None:
    expanded = sum(member.file_size for member in archive.infolist())
    if expanded > _MOST_EXPANSION * size:
        raise ValueError(f"it has {size:,} bytes and would expand to {expanded:,}")


@contextlib.contextmanager
def _as_one_line(path: Path) -> Iterator[None]:
    """Turns the errors of reading a model into one of one line."""
    try:
        yield
    except Exception as error:  # whatever Keras, or the class of a layer, makes of the file
        # Keras prints the configuration of the whole model before the cause.
        cause = str(error).rpartition("Exception encountered: ")[2]
        reason = " ".join(cause.split())[:300]
        raise DistcnnError(f"{path} is not a model that Keras can load: {reason}") from None
