"""JPEG files like those of a camera, for measurements of input pipelines."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

_WIDTH, _HEIGHT = 500, 375
_BYTES = 100_000
_CLASSES = 10
_MIXING = ((1.0, 0.25, 0.1), (1.0, -0.1, 0.1), (1.0, 0.1, -0.3))  # of noise to correlated colours


def make_photographs(folder: Path, count: int) -> float:
    """Writes `folder/train/<class>/*.jpg`: 500 x 375 pixels, about 100 KB each.

    The amplitude of the pixels falls with 1 / frequency, as in photographs. The same number always
    gives the same file.

    Returns:
        The mean size of a file in bytes.
    """
    quality = _quality_of(_BYTES)
    for label in range(_CLASSES):
        (folder / "train" / f"class{label}").mkdir(parents=True, exist_ok=True)

    def write(number: int) -> int:
        path = folder / "train" / f"class{number % _CLASSES}" / f"{number:06d}.jpg"
        return path.write_bytes(_encode(number, quality))

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        return float(np.mean(list(pool.map(write, range(count)))))


def _quality_of(size: int) -> int:
    """Returns the JPEG quality whose files have about a size in bytes."""
    return min(range(60, 98), key=lambda quality: abs(len(_encode(0, quality)) - size))


def _encode(number: int, quality: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(_photograph(number)).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def _photograph(number: int) -> np.ndarray:
    random = np.random.default_rng(number)
    rows, columns = np.fft.fftfreq(_HEIGHT)[:, np.newaxis], np.fft.rfftfreq(_WIDTH)
    frequency = np.hypot(rows, columns)
    frequency[0, 0] = 1
    shape = (3, *frequency.shape)
    spectrum = (random.normal(size=shape) + 1j * random.normal(size=shape)) / frequency
    noise = np.fft.irfft2(spectrum, s=(_HEIGHT, _WIDTH))
    noise /= noise.std(axis=(1, 2), keepdims=True)
    colours = np.einsum("ij,jhw->hwi", np.array(_MIXING), noise)
    return np.clip(colours * 50 + 120, 0, 255).astype(np.uint8)
