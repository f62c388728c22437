"""Plots: grids of images, the confusion matrix and the worst mistakes."""

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distcnn.runtime.text import printable, valid_unicode

if TYPE_CHECKING:  # imported late, since Matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_NAMES = 200
"""With more classes, their names would hide each other, and take most of the time to draw."""


def tile(images: np.ndarray, *, smallest: int = 64) -> np.ndarray:
    """Arranges images in a near-square grid, enlarging small ones.

    Args:
        images: Array of shape `(count, height, width, channels)`, grey or colour; uint8, or float
            in [0, 255].
        smallest: Minimum width in pixels, to which smaller images are enlarged.

    Returns:
        uint8 array of shape `(grid height, grid width, 3)`.
    """
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    factor = math.ceil(smallest / images.shape[2])
    images = images.repeat(factor, axis=1).repeat(factor, axis=2)
    if images.shape[3] == 1:
        images = images.repeat(3, axis=3)
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    gap = 2
    images = np.pad(images, ((0, rows * columns - len(images)), (0, gap), (0, gap), (0, 0)))
    _, height, width, channels = images.shape
    grid = images.reshape(rows, columns, height, width, channels).swapaxes(1, 2)
    return grid.reshape(rows * height, columns * width, channels)


def stretch_contrast(maps: np.ndarray) -> np.ndarray:
    """Scales each image of `(count, ...)` from its own range to [0, 255]."""
    axes = tuple(range(1, maps.ndim))
    low, high = maps.min(axes, keepdims=True), maps.max(axes, keepdims=True)
    return 255 * (maps - low) / np.maximum(high - low, 1e-12)


def curves_figure(
    curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], metric: str
) -> "Figure":
    """Draws a metric of several runs by step.

    Args:
        curves: Steps and values by the name of the run; those without values are left out.
        metric: Name of the metric.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for name, (steps, values) in curves.items():
        if steps:
            axes.plot(steps, values, ".-", linewidth=1, label=drawable(name))
    axes.set(xlabel="step", ylabel=metric)
    axes.grid(alpha=0.3)
    if 0 < len(axes.lines) <= 20:
        plain_legend(axes, fontsize="small")
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> "Figure":
    """Draws a confusion matrix, true classes as rows, shaded by the fraction of the row.

    Names are drawn of up to 200 classes, counts of up to 25.

    Args:
        matrix: int array of shape `(classes, classes)`.
        classes: Class names.
    """
    count = len(classes)
    side = min(20.0, 2.5 + 0.5 * count)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(side, side), layout="constrained")
    axes = figure.subplots()
    fractions = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.imshow(fractions, cmap="Blues", vmin=0, vmax=1)
    if count <= _MOST_NAMES:
        names = [drawable(name) for name in classes]
        axes.set_xticks(range(count), names, rotation=60, ha="right", parse_math=False)
        axes.set_yticks(range(count), names, parse_math=False)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    correct = np.trace(matrix) / max(matrix.sum(), 1)
    axes.set_title(f"{matrix.sum():,} images, accuracy {correct:.2%}")
    if count <= 25:
        for row, column in np.argwhere(matrix > 0):
            color = "white" if fractions[row, column] > 0.5 else "black"
            number = f"{matrix[row, column]}"
            axes.text(column, row, number, ha="center", va="center", color=color, fontsize=8)
    return figure


def mistakes_figure(
    images: np.ndarray, labels: np.ndarray, probabilities: np.ndarray, classes: Sequence[str]
) -> "Figure":
    """Draws misclassified images with their true and predicted classes.

    Args:
        images: uint8 array of shape `(count, height, width, channels)`, at least one.
        labels: True classes, int array of shape `(count,)`.
        probabilities: Array of shape `(count, classes)`.
        classes: Class names.
    """
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.7 * columns, 2.0 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes in grid:
        axes.axis("off")
    for axes, image, label, scores in zip(grid, images, labels, probabilities, strict=False):
        axes.imshow(image.squeeze(), cmap="gray", vmin=0, vmax=255)
        guess = int(scores.argmax())
        axes.set_title(
            f"{drawable(classes[label])} {scores[label]:.0%}\n"
            f"as {drawable(classes[guess])} {scores[guess]:.0%}",
            fontsize=8,
            parse_math=False,
        )
    return figure


def drawable(name: str) -> str:
    """Returns a name as Matplotlib can draw it, which cannot draw every text."""
    return valid_unicode(printable(name))


def plain_legend(axes: "Axes", **options: Any) -> None:
    """Adds a legend whose names are text: `$` begins no formula."""
    for name in axes.legend(**options).get_texts():
        name.set_parse_math(False)


def to_png(figure: "Figure") -> bytes:
    """Renders a figure as PNG."""
    buffer = io.BytesIO()
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(buffer)
    return buffer.getvalue()


def to_pixels(figure: "Figure") -> np.ndarray:
    """Renders a figure as a uint8 array of shape `(height, width, 3)`."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]
