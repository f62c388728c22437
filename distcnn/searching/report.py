"""Tables and pictures of a search."""

import base64
import html
import io
import math
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any

from distcnn.runtime.text import printable
from distcnn.searching.study import Row, best_of

if TYPE_CHECKING:  # imported late, since Matplotlib takes half a second
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = {"finished": "C0", "pruned": "C1", "failed": "C3"}


def table_of(rows: Sequence[Row], *, minimises: bool) -> tuple[list[str], list[list[str]]]:
    """Returns the head and the lines of a table, the best trial first.

    Args:
        rows: The trials.
        minimises: Whether the least value is the best.
    """
    keys = list(rows[0].settings) if rows else []
    order = ("finished", "pruned", "running", "failed")

    def rank(row: Row) -> tuple[int, float, int]:
        place = order.index(row.state) if row.state in order else len(order)
        value = math.inf if row.value is None else row.value * (1 if minimises else -1)
        return place, value, row.number

    lines = [
        [
            str(row.number),
            row.state,
            "" if row.value is None else f"{row.value:.4f}",
            str(max(row.values, default="")),
            f"{row.attributes.get('seconds', '')}",
            *(_short(row.settings.get(key)) for key in keys),
        ]
        for row in sorted(rows, key=rank)
    ]
    return ["trial", "state", "value", "epochs", "seconds", *keys], lines


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else printable(str(value))


def history_figure(rows: Sequence[Row], metric: str, *, minimises: bool) -> "Figure":
    """Draws the metric of each trial, the best so far, and its course by epoch."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for state, colour in _COLOURS.items():
        shown = [row for row in rows if row.state == state and row.value is not None]
        if shown:
            numbers, values = zip(*((row.number, row.value) for row in shown), strict=True)
            left.scatter(numbers, values, color=colour, label=state, s=22, zorder=3)
    _draw_best(left, rows, minimises=minimises)
    left.set(xlabel="trial", ylabel=metric, title="each trial, and the best so far")
    left.legend()
    for row in rows:
        if row.values:
            colour = _COLOURS.get(row.state, "C7")
            right.plot(
                list(row.values), list(row.values.values()), ".-", color=colour, alpha=0.6, lw=1
            )
    right.set(xlabel="epoch", ylabel=metric, title="each trial by epoch")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


def _draw_best(axes: "Axes", rows: Sequence[Row], *, minimises: bool) -> None:
    done = [row for row in rows if row.state == "finished" and row.value is not None]
    if done:
        best = [best_of(done[: n + 1], minimises=minimises) for n in range(len(done))]
        values = [row.value for row in best if row is not None and row.value is not None]
        numbers = [row.number for row in done]
        axes.step(
            [*numbers, rows[-1].number],
            [*values, values[-1]],
            where="post",
            color="black",
            label="best",
            lw=1,
        )


def importance_figure(
    importances: dict[str, float], rows: Sequence[Row], metric: str, logarithmic: Collection[str]
) -> "Figure":
    """Draws what each key explains of the metric, and the metric by the values of each key.

    Args:
        importances: The fraction of the variance that each key explains; empty if unknown.
        rows: The trials.
        metric: Its name.
        logarithmic: The keys whose values are drawn on a logarithmic axis.
    """
    from matplotlib.figure import Figure

    keys = list(importances) or list(rows[0].settings)
    columns = min(3, len(keys) + 1)
    lines = math.ceil((len(keys) + 1) / columns)
    figure = Figure(figsize=(4 * columns, 3.2 * lines), layout="constrained")
    places = figure.subplots(lines, columns, squeeze=False).ravel()
    first, *others = places
    first.barh(keys[::-1], [importances.get(key, 0.0) for key in keys[::-1]])
    first.set(title="fraction of the variance explained", xlim=(0, 1))
    done = [row for row in rows if row.value is not None and row.state in _COLOURS]
    for axes, key in zip(others, keys, strict=False):
        _draw_slice(axes, done, key, metric)
        if key in logarithmic:
            axes.set_xscale("log")
    for axes in others[len(keys) :]:
        axes.set_axis_off()
    return figure


def _draw_slice(axes: "Axes", rows: Sequence[Row], key: str, metric: str) -> None:
    values = [row.settings.get(key) for row in rows]
    numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
    shown: list[Any] = values if numeric else [str(value) for value in values]
    colours = [_COLOURS[row.state] for row in rows]
    axes.scatter(shown, [row.value or 0.0 for row in rows], c=colours, s=22)
    axes.set(xlabel=key, ylabel=metric)
    axes.grid(alpha=0.3)


def to_png(figure: "Figure") -> bytes:
    """Returns a figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()


def page(
    title: str, lead: str, pictures: Sequence[bytes], head: list[str], lines: list[list[str]]
) -> str:
    """Returns one HTML file with pictures and a table; it loads nothing from elsewhere."""
    images = "".join(
        f'<p><img src="data:image/png;base64,{base64.b64encode(each).decode()}" alt=""></p>'
        for each in pictures
    )
    top = "".join(f"<th>{html.escape(name)}</th>" for name in head)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(value)}</td>" for value in line) + "</tr>\n"
        for line in lines
    )
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title>
<style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
img {{ max-width: 100%; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid #ddd; padding: 0.2em 0.8em; text-align: left; }}
</style>
<h1>{html.escape(title)}</h1>
<p>{html.escape(lead)}</p>
{images}
<table><thead><tr>{top}</tr></thead>
<tbody>
{body}</tbody></table>
</html>
"""
