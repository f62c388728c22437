"""Classifies image files in batches."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distcnn.data.folder import FolderSplit
from distcnn.data.verify import decode_all, explain
from distcnn.inference.classifier import Classifier

_CHUNK_BYTES = 2**28


def predict_files(
    classifier: Classifier, paths: Sequence[Path], batch_size: int
) -> tuple[np.ndarray, dict[Path, str]]:
    """Returns the class probabilities of image files.

    Args:
        classifier: The model.
        paths: Image files of any size and format.
        batch_size: Images per step.

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
        split = FolderSplit(files, np.zeros(len(files), np.int64))
        resized = split.resized(shape)
        images = np.zeros((len(files), *shape), np.uint8)
        bad = decode_all(resized, images.__setitem__)
        errors |= zip([files[index] for index in bad], explain(resized, bad), strict=True)
        good = np.delete(images, bad, axis=0)
        if len(good):
            parts.append(model.predict(good, batch_size=batch_size, verbose=0))
    outputs = classifier.model.output_shape[-1]
    return np.concatenate([np.zeros((0, outputs), np.float32), *parts]), errors
