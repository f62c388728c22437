"""Pieces of HTML: escaped text, tables, figures."""

import base64
import html
import io
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from distcnn.runtime.text import decimals, printable, valid_unicode

_MOST_SIDE, _SHARP_SIDE = 160, 64


def text(value: object) -> str:
    """Returns text as HTML shows it."""
    return html.escape(valid_unicode(printable(value)))


def number(value: Any, digits: int = 4) -> str:
    """Returns a number as it is shown; a dash for none."""
    if value is None:
        return "-"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return text(value)
    return f"{value:,}" if isinstance(value, int) else decimals(value, digits)


def section(name: str, title: str, *parts: str) -> str:
    """Returns a section; empty if it has no content."""
    content = "".join(parts)
    return f'<section id="{name}"><h2>{text(title)}</h2>{content}</section>' if content else ""


def table(headings: Sequence[str], rows: Iterable[Sequence[str]], *, texts: int = 1) -> str:
    """Returns a table that scrolls for itself where the page is too narrow.

    Args:
        headings: Names of the columns.
        rows: Cells, as HTML.
        texts: How many columns hold text, from the left; the others hold numbers.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f"<{tag}>{cell}</{tag}>" if index < texts else f'<{tag} class="n">{cell}</{tag}>'
            for index, cell in enumerate(row)
        )

    head = cells("th", [text(each) for each in headings])
    body = "".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    if not body:
        return ""
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def pairs(content: Iterable[tuple[str, object]]) -> str:
    """Returns names with their values."""
    rows = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in content)
    return f"<dl>{rows}</dl>" if rows else ""


def tiles(content: Iterable[tuple[str, str, str]]) -> str:
    """Returns key figures: what each is, its value, and a remark."""
    rows = "".join(
        f'<div class="tile"><span>{text(name)}</span><strong>{text(value)}</strong>'
        f"<small>{text(remark)}</small></div>"
        for name, value, remark in content
    )
    return f'<div class="tiles">{rows}</div>'


def folded(title: str, content: str) -> str:
    """Returns what is shown when the reader asks for it."""
    return f"<details><summary>{text(title)}</summary>{content}</details>" if content else ""


def image(pixels: np.ndarray, description: str) -> str:
    """Returns an image inside the page; a large one is reduced.

    Args:
        pixels: uint8 `(height, width, channels)`, grey or colour.
        description: What it shows, in words.
    """
    picture = Image.fromarray(pixels.squeeze(axis=2) if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    is_small = max(picture.size) <= _SHARP_SIDE
    if is_small:
        picture.save(buffer, "PNG")
    else:
        picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
        picture.save(buffer, "JPEG", quality=85)
    kind = "png" if is_small else "jpeg"
    return embedded(buffer.getvalue(), kind, description, "sharp" if is_small else "soft")


def embedded(content: bytes, kind: str, description: str, style: str) -> str:
    """Returns an image file inside the page."""
    data = base64.b64encode(content).decode()
    return f'<img class="{style}" alt="{text(description)}" src="data:image/{kind};base64,{data}">'
