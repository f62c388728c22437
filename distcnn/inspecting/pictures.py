"""Decodes images by Pillow and measures them: no TensorFlow, several at once."""

import hashlib
import io
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from distcnn.data.image_file import read_image_file, shown_path
from distcnn.data.progress import progress_bar

MOST_PIXELS = 178_956_970
"""Larger images are not decoded, as by training."""

THUMBNAIL = 64
"""Sides of the pictures on a contact sheet, in pixels."""


@dataclass(frozen=True)
class Picture:
    """What is known of an image file.

    Attributes:
        damage: Why it cannot be decoded, or None.
        size: Bytes of the file.
        format: Its format, such as JPEG; empty if it cannot be decoded, like what follows.
        mode: Its colours as Pillow names them, such as RGB or L.
        width: Pixels from left to right, as it is shown.
        height: Pixels from top to bottom.
        content: Hash of the pixels, the same for the same picture in other files.
        mean: Mean of red, green and blue, in [0, 1].
        square: Mean of their squares.
    """

    damage: str | None
    size: int
    format: str = ""
    mode: str = ""
    width: int = 0
    height: int = 0
    content: bytes = b""
    mean: tuple[float, ...] = ()
    square: tuple[float, ...] = ()


def examine(paths: Sequence[bytes]) -> list[Picture]:
    """Decodes image files and measures each.

    Args:
        paths: The files, as the system encodes their names.
    """
    pictures = []
    with (
        ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool,
        progress_bar("Examining images", len(paths)) as advance,
    ):
        for picture in pool.map(_examine, paths):
            pictures.append(picture)
            advance(1)
    return pictures


def thumbnail(path: bytes) -> Image.Image:
    """Returns an image that fits a contact sheet."""
    return ImageOps.contain(_decode(read_image_file(path))[0], (THUMBNAIL, THUMBNAIL))


def _examine(path: bytes) -> Picture:
    try:
        content = read_image_file(path)
    except ValueError as error:
        return Picture(str(error).removeprefix(f"{shown_path(path)}: "), 0)
    try:
        image, kind, mode = _decode(content)
    except UnidentifiedImageError:
        return Picture("not an image" if content else "an empty file", len(content))
    except Exception as error:  # whatever Pillow makes of a damaged file
        return Picture(" ".join(str(error).split())[:200] or type(error).__name__, len(content))
    pixels = np.asarray(image, np.float32).reshape(-1, 3) / 255
    digest = hashlib.sha256(f"{image.size}".encode() + image.tobytes()).digest()
    return Picture(
        damage=None,
        size=len(content),
        format=kind,
        mode=mode,
        width=image.width,
        height=image.height,
        content=digest,
        mean=tuple(pixels.mean(axis=0, dtype=np.float64).tolist()),
        square=tuple((pixels**2).mean(axis=0, dtype=np.float64).tolist()),
    )


def _decode(content: bytes) -> tuple[Image.Image, str, str]:
    """Returns an image in RGB and upright, its format and its mode.

    Raises:
        Exception: It cannot be decoded.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with Image.open(io.BytesIO(content)) as image:
            kind, mode = str(image.format), image.mode
            if image.width * image.height > MOST_PIXELS:
                raise ValueError(
                    f"{image.width} x {image.height} pixels; expected at most {MOST_PIXELS:,}"
                )
            upright = ImageOps.exif_transpose(image)
            return _as_rgb(upright), kind, mode


def _as_rgb(image: Image.Image) -> Image.Image:
    if image.mode in ("I;16", "I;16B", "I", "F"):  # 16 bits: Pillow would clip them at 255
        values = np.asarray(image, np.float32)
        return Image.fromarray((values / 257).clip(0, 255).astype(np.uint8)).convert("RGB")
    return image.convert("RGB")
