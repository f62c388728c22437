"""Charts as SVG, whose colours are those of the page."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from distcnn.inference.details.calibration import Reliability
from distcnn.reporting.markup import text

_WIDTH, _HEIGHT = 460.0, 270.0
_LEFT, _RIGHT, _TOP, _BOTTOM = 52.0, 12.0, 10.0, 40.0
_MOST_POINTS = 500
_MOST_COLOURS = 10


@dataclass(frozen=True)
class Line:
    """A line of a chart.

    Attributes:
        name: For the legend.
        x: Where its points are.
        y: Their values; what is no number leaves a gap.
        style: CSS classes besides its colour.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    style: str = ""


@dataclass(frozen=True)
class _Axes:
    """The mapping from values to the picture."""

    x: tuple[float, float]
    y: tuple[float, float]

    def across(self, value: float) -> float:
        low, high = self.x
        return _LEFT + (value - low) / (high - low) * (_WIDTH - _LEFT - _RIGHT)

    def up(self, value: float) -> float:
        low, high = self.y
        return _HEIGHT - _BOTTOM - (value - low) / (high - low) * (_HEIGHT - _TOP - _BOTTOM)


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Returns round numbers that cover a range, at most `most` steps apart."""
    span = high - low
    if not span > 0:
        span = abs(low) or 1.0
        low, high = low - span / 2, high + span / 2
    raw = span / (most - 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= raw * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def line_chart(
    title: str, lines: Sequence[Line], x_name: str, *, unit: bool = False, y_name: str = ""
) -> str:
    """Returns a chart of lines; empty if there is nothing to draw.

    Args:
        title: Its heading.
        lines: The lines.
        x_name: What goes to the right.
        unit: Whether both axes go from 0 to 1.
        y_name: What goes up; nothing if the heading says it.
    """
    lines = [line for line in lines if any(map(math.isfinite, line.y))]
    if not lines:
        return ""
    x = [value for line in lines for value in line.x]
    y = [value for line in lines for value in line.y if math.isfinite(value)]
    x_ticks = ticks(0, 1) if unit else ticks(min(x), max(x))
    y_ticks = ticks(0, 1) if unit else ticks(min(y), max(y))
    x_range = (0.0, 1.0) if unit else _range(min(x), max(x))
    axes = _Axes(x_range, (y_ticks[0], y_ticks[-1]))
    inside = [each for each in x_ticks if x_range[0] <= each <= x_range[1]]
    drawn = "".join(_path(axes, number, line) for number, line in enumerate(lines))
    legend = "".join(
        f'<span class="key s{number % _MOST_COLOURS} {line.style}"><i></i>{text(line.name)}</span>'
        for number, line in enumerate(lines)
        if line.name != title
    )
    return _figure(title, _grid(axes, inside, y_ticks, x_name, y_name) + drawn, legend)


def _range(low: float, high: float) -> tuple[float, float]:
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def reliability_chart(title: str, reliability: Reliability) -> str:
    """Returns a reliability diagram: the fraction that is true, by what is said to be probable."""
    axes = _Axes((0.0, 1.0), (0.0, 1.0))
    width = 1 / len(reliability.images)
    bars = []
    for row in reliability.rows():
        left, right = axes.across(row["above"]) + 1, axes.across(row["above"] + width) - 1
        top, floor = axes.up(row["accuracy"]), axes.up(0.0)
        said = axes.up(row["confidence"])
        about = (
            f"{row['images']:,} images: confidence {row['confidence']:.3f}, "
            f"accuracy {row['accuracy']:.3f}"
        )
        bars.append(
            f'<g><title>{about}</title><rect class="bar" x="{left:.1f}" y="{top:.1f}" '
            f'width="{right - left:.1f}" height="{floor - top:.1f}"/>'
            f'<rect class="gap" x="{left:.1f}" y="{min(top, said):.1f}" '
            f'width="{right - left:.1f}" height="{abs(top - said):.1f}"/></g>'
        )
    diagonal = _path(axes, 0, Line("", [0, 1], [0, 1], "dashed"))
    marks = ticks(0, 1)
    grid = _grid(axes, marks, marks, "confidence", "accuracy")
    legend = (
        '<span class="key"><i class="bar"></i>accuracy</span>'
        '<span class="key"><i class="gap"></i>gap to the confidence</span>'
    )
    return _figure(title, grid + "".join(bars) + diagonal, legend)


def _figure(title: str, content: str, legend: str) -> str:
    return (
        f'<figure class="chart"><figcaption>{text(title)}</figcaption>'
        f'<svg viewBox="0 0 {_WIDTH:g} {_HEIGHT:g}" role="img" aria-label="{text(title)}">'
        f'{content}</svg><div class="legend">{legend}</div></figure>'
    )


def _grid(
    axes: _Axes, x_ticks: Sequence[float], y_ticks: Sequence[float], x_name: str, y_name: str
) -> str:
    left, right, floor = _LEFT, _WIDTH - _RIGHT, _HEIGHT - _BOTTOM
    parts = []
    for value in y_ticks:
        y = axes.up(value)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(
            f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{_label(value)}</text>'
        )
    for value in x_ticks:
        x = axes.across(value)
        parts.append(
            f'<text x="{x:.1f}" y="{floor + 16}" text-anchor="middle">{_label(value)}</text>'
        )
    middle = (left + right) / 2
    parts.append(
        f'<text class="name" x="{middle}" y="{_HEIGHT - 6}" text-anchor="middle">'
        f"{text(x_name)}</text>"
    )
    if y_name:
        at = (_TOP + floor) / 2
        parts.append(
            f'<text class="name" text-anchor="middle" transform="translate(13 {at}) rotate(-90)">'
            f"{text(y_name)}</text>"
        )
    return "".join(parts)


def _label(value: float) -> str:
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, power = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{round(value, 10):,.6g}"


def _path(axes: _Axes, number: int, line: Line) -> str:
    step = max(1, math.ceil(len(line.x) / _MOST_POINTS))
    last = len(line.x) - 1
    points = [index for index in range(len(line.x)) if index % step == 0 or index == last]
    commands, pen_down = [], False
    is_dotted = "dots" in line.style or len(points) == 1
    for index in points:
        if not math.isfinite(line.y[index]):
            pen_down = False
            continue
        place = f"{axes.across(line.x[index]):.1f} {axes.up(line.y[index]):.1f}"
        commands.append(f"M{place}h0" if is_dotted else f"{'L' if pen_down else 'M'}{place}")
        pen_down = True
    style = f"line s{number % _MOST_COLOURS} {'dots' if is_dotted else line.style}".strip()
    return f'<path class="{style}" d="{"".join(commands)}"/>'
