"""A contact sheet: a few images of each class as one picture."""

import textwrap
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distcnn.inspecting.listing import Listing
from distcnn.inspecting.pictures import THUMBNAIL, thumbnail
from distcnn.runtime.text import printable, valid_unicode

_COLUMNS = 12
_MOST_ROWS = 40
_GAP = 4
_LABEL = 150


def write_sheet(path: Path, listing: Listing, good: np.ndarray) -> None:
    """Writes a contact sheet as PNG: up to 12 images of each of up to 40 classes, evenly spread.

    Where labels are numbers, the rows show rising ones.

    Args:
        path: File to write.
        listing: The images.
        good: Indices of those that can be decoded, int64.
    """
    rows = _rows(listing, good)[:_MOST_ROWS]
    cell = THUMBNAIL + _GAP
    size = (_LABEL + _COLUMNS * cell + _GAP, len(rows) * cell + _GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    for number, (name, chosen) in enumerate(rows):
        top = _GAP + number * cell
        text = "\n".join(textwrap.wrap(valid_unicode(printable(name)), 20)[:4])
        draw.multiline_text((_GAP, top), text, fill="black", font=font)
        for column, index in enumerate(chosen.tolist()):
            picture = thumbnail(listing.paths[index])
            left = _LABEL + column * cell + (THUMBNAIL - picture.width) // 2
            sheet.paste(picture, (left, top + (THUMBNAIL - picture.height) // 2))
    sheet.save(path, "PNG")


def _rows(listing: Listing, good: np.ndarray) -> list[tuple[str, np.ndarray]]:
    labels = listing.labels[good]
    if listing.task == "regression":
        order = good[np.argsort(labels[:, 0], kind="stable")]
        parts = [part for part in np.array_split(order, 8) if len(part)]
        ends = [listing.labels[part[[0, -1]], 0] for part in parts]
        names = [f"{listing.classes[0]} {low:g} to {high:g}" for low, high in ends]
        return list(zip(names, map(_spread, parts), strict=True))
    rows = []
    for index, name in enumerate(listing.classes):
        has = labels[:, index] if labels.ndim == 2 else labels == index
        rows.append((f"{name} ({np.count_nonzero(has):,})", _spread(good[has])))
    if labels.ndim == 2 and not labels.any(axis=1).all():
        none = good[~labels.any(axis=1)]
        rows.append((f"no label ({len(none):,})", _spread(none)))
    return rows


def _spread(indices: np.ndarray) -> np.ndarray:
    """Returns up to one row of images, evenly spread."""
    count = min(_COLUMNS, len(indices))
    return indices[np.linspace(0, len(indices) - 1, count).astype(np.int64)] if count else indices
