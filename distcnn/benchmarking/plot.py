"""The picture of a benchmark: throughput by workers, and where the step time goes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from distcnn.benchmarking.results import Prediction, Results, Row

_SHARES = (
    ("input", "input_share", "#e8a33d"),
    ("compute", "compute_share", "#3b75af"),
    ("communication", "communication_share", "#c0504d"),
)
_COLORS = ("#3b75af", "#d9662b", "#3f8f4f", "#8457a8", "#8c6d4f", "#c44e8b")
_LEGEND = {"loc": "outside lower center", "frameon": False, "fontsize": 9}
_LEGEND_CHARACTERS = 92
"""Characters that fit below one half of the figure."""


def scaling_figure(results: Results) -> Figure:
    """Draws the throughput by workers beside the shares of the step time.

    Workers that share cores or GPUs have hollow markers; ideal scaling is dotted, the prediction
    dashed.

    Args:
        results: What the benchmark found, at least one row.
    """
    layout = ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1)
    height = max(5.4, 2.4 + 0.3 * len(results.rows))
    figure = Figure(figsize=(13, height), layout=layout)
    figure.suptitle(
        f"{results.model}, {results.parameters:,} parameters, {results.precision}, "
        f"data {results.data}",
        parse_math=False,
    )
    (left, right), *_ = figure.subfigures(1, 2, squeeze=False)
    _draw_throughput(left, results)
    _draw_shares(right, results.rows)
    return figure


def _draw_throughput(figure: Any, results: Results) -> None:
    axes = figure.subplots()
    predicted = _predicted_throughput(results.prediction, results.rows)
    counts = sorted({row.workers for row in results.rows} | set(predicted))
    handles = []
    for number, (label, rows) in enumerate(_series(results.rows).items()):
        color = _COLORS[number % len(_COLORS)]
        axes.plot(counts, _ideal(rows, counts), ":", color="grey", linewidth=1.2)
        axes.plot(
            [row.workers for row in rows],
            [row.images_per_second for row in rows],
            color=color,
            label=label,
        )
        for row in rows:
            fill = "white" if row.oversubscribed else color
            axes.plot(row.workers, row.images_per_second, "o", color=color, mfc=fill, zorder=3)
        handles.append(Line2D([], [], color=color, marker="o", label=label))
    if len(counts) > 1:
        handles.append(Line2D([], [], color="grey", linestyle=":", label="ideal"))
    if predicted:
        handles += axes.plot(
            list(predicted), list(predicted.values()), "--", color="black", label="predicted (weak)"
        )
    if any(row.oversubscribed for row in results.rows):
        hollow = Line2D([], [], color="grey", marker="o", mfc="white", linestyle="none")
        hollow.set_label("* sharing cores or GPUs")
        handles.append(hollow)
    _label_throughput(axes, counts)
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, _LEGEND_CHARACTERS // (longest + 8))
    figure.legend(handles=handles, ncols=columns, **_LEGEND)


def _label_throughput(axes: Any, counts: Sequence[int]) -> None:
    axes.set_title("Throughput")
    axes.set_xlabel("workers (log scale)")
    axes.set_ylabel("throughput (images/s, log scale)")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.margins(0.08)
    axes.set_xticks(counts, [str(count) for count in counts])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def _draw_shares(figure: Any, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    positions = range(len(rows))
    left = [0.0] * len(rows)
    for label, name, color in _SHARES:
        shares = [getattr(row, name) for row in rows]
        bars = axes.barh(positions, shares, left=left, height=0.7, color=color, label=label)
        texts = [f"{share:.0%}" if share >= 0.06 else "" for share in shares]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    with_strategy = len({row.strategy for row in rows}) > 1
    ticks = [_tick(row, with_strategy) for row in rows]
    axes.set_yticks(positions, ticks, fontsize=9, parse_math=False)
    axes.set_ylim(max(len(rows), 5) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Where the step time goes")
    axes.set_xlabel("share of the step time (%)")
    cores = "" if all(row.cores_per_worker is None for row in rows) else " x cores of each"
    axes.set_ylabel(f"scaling, workers{cores}, global batch", labelpad=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), ncols=len(_SHARES), **_LEGEND)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Sorts rows into lines by their label, each by workers.

    A line has one scaling, strategy and batch (of each worker or of all), and one number of cores
    where the same workers were measured with several. One worker needs no strategy of several, so
    it begins the lines of all those strategies.
    """
    lines: dict[str, list[Row]] = {}
    for scaling in ("weak", "strong"):
        chosen = sorted((r for r in rows if r.scaling == scaling), key=lambda row: row.workers)
        several = sorted({row.strategy for row in chosen if row.workers > 1})
        keyed: list[tuple[Row, tuple[str, ...]]] = [
            (row, (name, _batch(row)))
            for row in chosen
            for name in ([row.strategy] if row.strategy in several or not several else several)
        ]
        if len({(row.workers, key) for row, key in keyed}) < len(keyed):
            keyed = [(row, (*key, _cores(row))) for row, key in keyed]
        for row, key in keyed:
            varying = [
                part
                for position, part in enumerate(key)
                if len({other[position] for _, other in keyed}) > 1
            ]
            label = ", ".join((f"{scaling} scaling", *varying))
            lines.setdefault(label, []).append(row)
    return lines


def _cores(row: Row) -> str:
    return f"cores per worker {row.cores_per_worker}"


def _batch(row: Row) -> str:
    return f"batch {row.per_worker_batch if row.scaling == 'weak' else row.global_batch:.10g}"


def _ideal(rows: Sequence[Row], counts: Sequence[int]) -> list[float]:
    """Returns the images per second of so many workers at an efficiency of 1.

    Workers have the cores that they had when they were measured, others those of the most workers.
    """
    cores = {row.workers: row.cores_per_worker or 1 for row in rows}
    first, last = rows[0], rows[-1]
    of_each = first.images_per_second_per_worker / cores[first.workers] / (first.efficiency or 1)
    return [of_each * count * cores.get(count, cores[last.workers]) for count in counts]


def _predicted_throughput(prediction: Prediction | None, rows: Sequence[Row]) -> dict[int, float]:
    """Returns the predicted images per second by workers, at the batch of the weak rows."""
    batches = [row.per_worker_batch for row in rows if row.scaling == "weak"]
    if prediction is None or not batches:
        return {}
    return {
        point.workers: 1000 * point.workers * batches[0] / point.step_ms
        for point in sorted(prediction.points, key=lambda point: point.workers)
    }


def _tick(row: Row, with_strategy: bool) -> str:
    strategy = f" {row.strategy}" if with_strategy else ""
    return f"{row.scaling}{strategy} {row.placement}, batch {row.global_batch}"
