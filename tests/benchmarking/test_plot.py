"""The figure of a benchmark."""

import numpy as np
import pytest

from distcnn.benchmarking.plot import scaling_figure
from distcnn.inference.plots import to_pixels
from tests.benchmarking.samples import results, row, wide_results


def lines_of(axes):
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def coordinates(line):
    return np.asarray(line.get_xydata())


def test_the_figure_shows_the_numbers():
    sample = results()
    figure = scaling_figure(sample)
    throughput, fractions = figure.axes
    lines = lines_of(throughput)
    for scaling in ("weak", "strong"):
        rows = [r for r in sample.rows if r.scaling == scaling]
        points = coordinates(lines[f"{scaling} scaling"])
        np.testing.assert_allclose(points, [(r.workers, r.images_per_second) for r in rows])
    np.testing.assert_allclose(
        coordinates(lines["predicted (weak)"]), [(1, 640), (2, 128e3 / 105), (16, 128e3 / 13.75)]
    )
    dotted = [line for line in throughput.lines if line.get_linestyle() == ":"]
    for line in dotted:
        np.testing.assert_allclose(coordinates(line), [(n, 640 * n) for n in (1, 2, 4, 16)])
    markers = [line for line in throughput.lines if line.get_marker() == "o"]
    hollow = [line for line in markers if line.get_markerfacecolor() == "white"]
    assert len(markers) == 6
    assert [coordinates(line)[0, 0] for line in hollow] == [4, 4]
    assert [label.get_text() for label in throughput.get_xticklabels()] == ["1", "2", "4", "16"]
    assert "images/s" in throughput.get_ylabel()

    widths = [[bar.get_width() for bar in bars] for bars in fractions.containers]
    expected = [(r.input_share, r.compute_share, r.communication_share) for r in sample.rows]
    np.testing.assert_allclose(np.transpose(widths), expected)
    for bars, starts in zip(fractions.containers, np.cumsum([[0] * 6, *widths], 0), strict=False):
        np.testing.assert_allclose([bar.get_x() for bar in bars], starts)
    assert fractions.get_yticklabels()[2].get_text() == "weak 4 x 1*, batch 512"
    assert fractions.yaxis_inverted()


def test_the_ideal_line_follows_the_cores_per_worker():
    """One, two or four workers divide four cores, so the ideal throughput is the same for all."""
    divided = [
        row(workers=n, cores_per_worker=4 // n, step_ms=50.0 * n, efficiency=1.0) for n in (1, 2, 4)
    ]
    sample = results(rows=tuple(divided), prediction=None)
    axes = scaling_figure(sample).axes[0]
    (dotted,) = [line for line in axes.lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(coordinates(dotted), [(n, 2560) for n in (1, 2, 4)])


@pytest.mark.parametrize(
    ("rows", "lines"),
    [
        (
            [
                *(row(strategy=name) for name in ("horovod", "multi_worker")),
                row(strategy="one_device", workers=1),
            ],
            {"weak scaling, horovod": [1, 2], "weak scaling, multi_worker": [1, 2]},
        ),
        ([row(), row(workers=1, cores_per_worker=2)], {"weak scaling": [1, 2]}),
        (
            [row(), row(workers=1), row(workers=1, cores_per_worker=2)],
            {
                "weak scaling, cores per worker 1": [1, 2],
                "weak scaling, cores per worker 2": [1],
            },
        ),
        (
            [row(), row(batch=65), row(scaling="strong")],
            {
                "weak scaling, batch 128": [2],
                "weak scaling, batch 65": [2],
                "strong scaling": [2],
            },
        ),
    ],
    ids=["one worker starts all lines", "different cores", "several cores", "several batches"],
)
def test_rows_are_grouped_into_lines(rows, lines):
    axes = scaling_figure(results(rows=tuple(rows), prediction=None)).axes[0]
    drawn = lines_of(axes)
    assert {label: coordinates(line)[:, 0].tolist() for label, line in drawn.items()} == lines


@pytest.mark.parametrize(
    "sample",
    [results(), wide_results(), results(rows=(row(),), prediction=None)],
    ids=["usual", "wide", "one row"],
)
def test_no_part_of_the_figure_hides_another(sample):
    figure = scaling_figure(sample)
    assert to_pixels(figure).std() > 5
    legends = [legend for half in figure.subfigs for legend in half.legends]
    parts = [*legends, *figure.axes, *figure.texts]
    boxes = [box for part in parts if (box := part.get_tightbbox()) is not None]
    assert len(boxes) == len(parts) == 5
    for number, box in enumerate(boxes):
        assert 0 <= box.x0 < box.x1 <= figure.bbox.x1
        assert 0 <= box.y0 < box.y1 <= figure.bbox.y1
        assert not any(box.overlaps(other) for other in boxes[:number])
