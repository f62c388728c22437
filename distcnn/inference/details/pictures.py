"""The pictures of an evaluation as PNG: reliability, curves, numbers, and mistakes as a sheet."""

import io
import math
import textwrap
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from distcnn.inference.details.calibration import Reliability
from distcnn.inference.details.curves import Curve, Rankings
from distcnn.inference.details.mistakes import PER_CLASS, Mistake, Mistakes
from distcnn.inference.number_evaluation import NumberEvaluation
from distcnn.inference.plots import drawable, plain_legend
from distcnn.runtime.text import printable

if TYPE_CHECKING:  # imported late, since Matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SIDE, _GAP, _LABEL, _TEXT = 112, 10, 150, 34


def reliability_figure(
    before: Reliability, after: Reliability | None, temperature: float | None
) -> "Figure":
    """Draws a reliability diagram: how often the classifier is right, by how sure it is.

    Args:
        before: The classifier as it is.
        after: The classifier with its temperature, or None.
        temperature: The temperature.
    """
    from matplotlib.figure import Figure

    panels = [(f"ECE {before.ece:.4f}", before)]
    if after is not None:
        panels.append((f"temperature {temperature:.3f}: ECE {after.ece:.4f}", after))
    figure = Figure(figsize=(4.6 * len(panels), 4.8), layout="constrained")
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, each) in zip(grid, panels, strict=True):
        edges = np.linspace(0, 1, len(each.images) + 1)
        width = edges[1]
        accuracy = np.nan_to_num(each.accuracy)
        gap = np.nan_to_num(each.confidence - each.accuracy)
        axes.bar(edges[:-1], accuracy, width, align="edge", color="#3b6fb6", edgecolor="white")
        gaps = axes.bar(edges[:-1], gap, width, accuracy, align="edge", color="#d1495b", alpha=0.35)
        gaps.set_label("gap to the confidence")
        axes.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
        axes.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="accuracy", title=title)
        axes.set_aspect("equal")
        axes.legend(loc="upper left", fontsize="small")
    return figure


def curves_figure(rankings: Rankings) -> "Figure":
    """Draws ROC and precision-recall curves, each class against the others."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw(left, rankings, "roc", "auc")
    left.plot([0, 1], [0, 1], "--", color="gray", linewidth=1)
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    left.set_title(
        f"ROC: AUC {_known(rankings.macro_auc)} macro, {_known(rankings.micro.auc)} micro"
    )
    _draw(right, rankings, "precision_recall", "average_precision")
    right.set(xlabel="recall", ylabel="precision")
    macro, micro = rankings.macro_average_precision, rankings.micro.average_precision
    right.set_title(f"precision-recall: AP {_known(macro)} macro, {_known(micro)} micro")
    return figure


def _draw(axes: "Axes", rankings: Rankings, kind: str, area: str) -> None:
    for number, each in enumerate([*rankings.by_class, rankings.micro]):
        curve: Curve | None = getattr(each, kind)
        if curve is None:
            continue
        is_micro = each is rankings.micro
        colour, width = ("black", 2) if is_micro else (f"C{number % 10}", 1)
        label = f"{drawable(each.name)[:24]} {getattr(each, area):.3f}"
        axes.plot(curve.x, curve.y, color=colour, linewidth=width, label=label)
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01))
    axes.grid(alpha=0.3)
    if 0 < len(axes.lines) <= 13:
        below = (0.5, -0.12)  # curves may be anywhere inside
        plain_legend(axes, fontsize="small", loc="upper center", bbox_to_anchor=below, ncols=3)


def numbers_figure(result: NumberEvaluation) -> "Figure":
    """Draws the numbers of a model against the true ones, up to nine of them."""
    from matplotlib.figure import Figure

    count = min(9, len(result.classes))
    columns = math.ceil(math.sqrt(count))
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(4.2 * columns, 4.2 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for index, axes in enumerate(grid):
        axes.set_visible(index < count)
        if index >= count:
            continue
        truth, found = result.labels[:, index], result.values[:, index]
        low, high = float(min(truth.min(), found.min())), float(max(truth.max(), found.max()))
        axes.plot([low, high], [low, high], "--", color="gray", linewidth=1)
        axes.scatter(truth, found, s=9, alpha=0.5, color="#3b6fb6", linewidths=0)
        axes.set(xlabel="true", ylabel="predicted")
        axes.set_title(drawable(result.classes[index]), parse_math=False)
        axes.grid(alpha=0.3)
    return figure


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lays a heat map over an image in grey.

    Args:
        image: uint8 `(height, width, channels)`.
        heat: float32 `(height, width)` in [0, 1].

    Returns:
        uint8 `(height, width, 3)`.
    """
    from matplotlib import colormaps

    grey = image.mean(axis=2, keepdims=True).repeat(3, axis=2)
    colours = 255 * colormaps["inferno"](np.sqrt(heat))[..., :3]
    strength = 0.25 + 0.5 * heat[..., np.newaxis]
    return ((1 - strength) * grey + strength * colours).round().clip(0, 255).astype(np.uint8)


def mistakes_sheet(mistakes: Mistakes) -> bytes:
    """Returns the worst mistakes as PNG: a row for each class, Grad-CAM beside each image."""
    groups = mistakes.groups()
    has_heat = any(each.heat is not None for each in mistakes.worst)
    cell = _SIDE * (2 if has_heat else 1) + 2 * has_heat + _GAP
    columns = max([len(worst) for *_, worst in groups], default=PER_CLASS)
    note = 18 if mistakes.note else 0
    height = len(groups) * (_SIDE + _TEXT + _GAP) + _GAP + note
    sheet = Image.new("RGB", (_LABEL + columns * cell + _GAP, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=12)
    if note:
        draw.text((_GAP, _GAP // 2), printable(mistakes.note), fill="#666666", font=font)
    for number, (name, count, worst) in enumerate(groups):
        top = _GAP + note + number * (_SIDE + _TEXT + _GAP)
        title = "\n".join(textwrap.wrap(f"{drawable(name)} ({count:,})", 20)[:5])
        draw.multiline_text((_GAP, top), title, fill="black", font=font)
        for column, each in enumerate(worst):
            left = _LABEL + column * cell
            sheet.paste(picture_of(each, _SIDE), (left, top))
            text = "\n".join(textwrap.wrap(drawable(each.said), max(12, (cell - _GAP) // 7))[:2])
            draw.multiline_text((left, top + _SIDE + 2), text, fill="black", font=font)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def picture_of(mistake: Mistake, side: int) -> Image.Image:
    """Returns the image of a mistake, with Grad-CAM at its right if that is known.

    Args:
        mistake: The mistake.
        side: Height and width of the longer side of either, in pixels.
    """
    assert mistake.image is not None
    parts = [_fitted(mistake.image, side)]
    if mistake.heat is not None:
        parts.append(_fitted(overlay(mistake.image, mistake.heat), side))
    width = sum(each.width for each in parts) + 2 * (len(parts) - 1)
    picture = Image.new("RGB", (width, parts[0].height), "white")
    for number, each in enumerate(parts):
        picture.paste(each, (number * (each.width + 2), 0))
    return picture


def _fitted(image: np.ndarray, side: int) -> Image.Image:
    picture = Image.fromarray(image.squeeze(axis=2) if image.shape[2] == 1 else image).convert(
        "RGB"
    )
    scale = side / max(picture.size)
    width, height = (max(1, round(each * scale)) for each in picture.size)
    return picture.resize(
        (width, height), Image.Resampling.BOX if scale > 1 else Image.Resampling.LANCZOS
    )


def _known(area: float | None) -> str:
    return "-" if area is None else f"{area:.4f}"
