import io
import os

import numpy as np
import pytest
from PIL import Image

from distcnn.inference.plots import (
    confusion_figure,
    curves_figure,
    mistakes_figure,
    stretch_contrast,
    tile,
    to_pixels,
    to_png,
)


def test_names_of_runs_are_no_formulas():
    figure = curves_figure({"runs/lr$_{$": ([1, 2], [0.5, 0.25])}, "loss")
    assert to_png(figure)
    legend = figure.axes[0].get_legend()
    assert legend is not None
    (name,) = legend.get_texts()
    assert name.get_text() == "runs/lr$_{$"


def test_tile_lays_images_out_row_by_row():
    images = np.arange(1, 6, dtype=np.uint8)[:, None, None, None] * np.ones((5, 4, 3, 3), np.uint8)
    grid = tile(images, smallest=3)
    assert grid.dtype == np.uint8
    assert grid.shape == (2 * (4 + 2), 3 * (3 + 2), 3)  # 2 rows, 3 columns, a gap of 2
    corners = grid[::6, ::5, 0]
    assert corners.tolist() == [[1, 2, 3], [4, 5, 0]]
    assert (grid[:4, :3] == 1).all()
    assert not grid[4:6].any()
    assert not grid[:, 3:5].any()


def test_tile_enlarges_small_images_and_colours_grey_ones():
    image = np.array([[0, 100], [200, 255]], np.uint8).reshape(1, 2, 2, 1)
    grid = tile(image, smallest=5)
    assert grid.shape == (6 + 2, 6 + 2, 3)
    assert (grid[..., 0] == grid[..., 2]).all()
    assert (
        grid[[0, 2, 3, 5], :6, 1].tolist()
        == [[0] * 3 + [100] * 3] * 2 + [[200] * 3 + [255] * 3] * 2
    )
    assert tile(np.zeros((1, 70, 70, 3), np.uint8)).shape == (72, 72, 3)


def test_tile_rounds_and_clips_floats():
    image = np.array([-3.0, 0.4, 0.6, 254.7, 300.0], np.float32).reshape(1, 1, 5, 1)
    assert tile(image, smallest=5)[0, :5, 0].tolist() == [0, 0, 1, 255, 255]


def test_contrast_is_stretched_image_by_image():
    maps = np.array([[[1.0, 3.0]], [[-1.0, 0.0]], [[7.0, 7.0]]])
    assert stretch_contrast(maps).tolist() == [[[0, 255]], [[0, 255]], [[0, 0]]]


@pytest.mark.parametrize("count", [2, 100, 300])
def test_a_confusion_matrix_is_drawn(count):
    matrix = np.random.default_rng(0).integers(0, 5, (count, count))
    matrix[0] = 0  # a class without images
    figure = confusion_figure(matrix, [f"class {number}" for number in range(count)])
    with Image.open(io.BytesIO(to_png(figure))) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100 * min(20, 2.5 + count / 2) - 1
    assert len(np.unique(pixels)) > 20
    (axes,) = figure.axes
    assert axes.get_title() == (
        f"{matrix.sum():,} images, accuracy {np.trace(matrix) / matrix.sum():.2%}"
    )
    assert len(axes.texts) == (np.count_nonzero(matrix) if count == 2 else 0)
    last = [label.get_text() for label in axes.get_yticklabels()][-1]
    assert (last == f"class {count - 1}") == (count <= 200)


@pytest.mark.parametrize(("count", "channels"), [(1, 1), (5, 3)])
def test_mistakes_are_drawn_with_both_names(count, channels):
    images = np.random.default_rng(0).integers(0, 256, (count, 8, 8, channels), dtype=np.uint8)
    figure = mistakes_figure(
        images, np.zeros(count, int), np.array([[0.25, 0.75]] * count), ["$\\cat$", "dog"]
    )
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:count] == ["$\\cat$ 25%\nas dog 75%"] * count
    assert not any(titles[count:])
    assert to_pixels(figure).std() > 5


def test_any_class_name_can_be_drawn():
    names = [os.fsdecode(b"caf\xe9"), "\x1b[2J"]
    figure = confusion_figure(np.eye(2, dtype=int), names)
    assert to_png(figure)
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["caf\ufffd", "\\x1b[2J"]
    images = np.zeros((1, 4, 4, 3), np.uint8)
    figure = mistakes_figure(images, np.array([0]), np.array([[0.25, 0.75]]), names)
    assert to_png(figure)
    assert figure.axes[0].get_title() == "caf\ufffd 25%\nas \\x1b[2J 75%"
