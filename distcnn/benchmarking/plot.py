"""The figure of a benchmark: throughput by number of workers, and where the step time goes."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator, PercentFormatter

from distcnn.benchmarking.results import Prediction, Results, Row

_TIME_FRACTIONS = (
    ("input", "input_share", "#e8a33d"),
    ("compute", "compute_share", "#3b75af"),
    ("communication", "communication_share", "#c0504d"),
)
_COLORS = ("#3b75af", "#d9662b", "#3f8f4f", "#8457a8", "#8c6d4f", "#c44e8b")
_LEGEND = {"loc": "outside lower center", "frameon": False, "fontsize": 9}
_LEGEND_CHARACTERS = 92
"""Number of characters that fit below one half of the figure."""


def scaling_figure(results: Results) -> Figure:
    """Draws the throughput by number of workers beside the fractions of the step time.

    Hollow markers are workers that share cores or GPUs. Ideal scaling is dotted, the prediction
    dashed.

    Args:
        results: Results of the benchmark, with at least one row.
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
    _draw_time_fractions(right, results.rows)
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


def _draw_time_fractions(figure: Any, rows: Sequence[Row]) -> None:
    axes = figure.subplots()
    positions = range(len(rows))
    left = [0.0] * len(rows)
    for label, name, color in _TIME_FRACTIONS:
        fractions = [getattr(row, name) for row in rows]
        bars = axes.barh(positions, fractions, left=left, height=0.7, color=color, label=label)
        texts = [f"{fraction:.0%}" if fraction >= 0.06 else "" for fraction in fractions]
        axes.bar_label(bars, texts, label_type="center", color="white", fontsize=8)
        left = [start + fraction for start, fraction in zip(left, fractions, strict=True)]
    with_strategy = len({row.strategy for row in rows}) > 1
    labels = [_tick_label(row, with_strategy) for row in rows]
    axes.set_yticks(positions, labels, fontsize=9, parse_math=False)
    axes.set_ylim(max(len(rows), 5) - 0.4, -0.6)
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1))
    axes.set_title("Where the step time goes")
    axes.set_xlabel("fraction of the step time (%)")
    cores = "" if all(row.cores_per_worker is None for row in rows) else " x cores per worker"
    axes.set_ylabel(f"scaling, workers{cores}, global batch", labelpad=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes.get_legend_handles_labels(), ncols=len(_TIME_FRACTIONS), **_LEGEND)


def _series(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Groups rows into lines by label, each line ordered by number of workers.

    The rows of a line have the same scaling, strategy and batch (per worker or global), and the
    same number of cores if a number of workers was measured with several. A single worker uses no
    distribution strategy, so it starts the line of every strategy.
    """
    lines: dict[str, list[Row]] = {}
    for scaling in ("weak", "strong"):
        chosen = sorted((r for r in rows if r.scaling == scaling), key=lambda row: row.workers)
        strategies = sorted({row.strategy for row in chosen if row.workers > 1})
        keyed: list[tuple[Row, tuple[str, ...]]] = [
            (row, (name, _batch(row)))
            for row in chosen
            for name in _strategies_of_lines(row, strategies)
        ]
        if len({(row.workers, key) for row, key in keyed}) < len(keyed):
            keyed = [(row, (*key, _cores(row))) for row, key in keyed]
        for row, key in keyed:
            varying = [
                part
                for position, part in enumerate(key)
                if len({other_key[position] for _, other_key in keyed}) > 1
            ]
            label = ", ".join((f"{scaling} scaling", *varying))
            lines.setdefault(label, []).append(row)
    return lines


def _strategies_of_lines(row: Row, strategies: list[str]) -> list[str]:
    return [row.strategy] if row.strategy in strategies or not strategies else strategies


def _cores(row: Row) -> str:
    return f"cores per worker {row.cores_per_worker}"


def _batch(row: Row) -> str:
    return f"batch {row.per_worker_batch if row.scaling == 'weak' else row.global_batch:.10g}"


def _ideal(rows: Sequence[Row], counts: Sequence[int]) -> list[float]:
    """Returns the images per second of each number of workers at an efficiency of 1.

    A number of workers that was not measured gets as many cores per worker as the largest one that
    was.
    """
    cores = {row.workers: row.cores_per_worker or 1 for row in rows}
    first, last = rows[0], rows[-1]
    per_core = first.images_per_second_per_worker / cores[first.workers] / (first.efficiency or 1)
    return [per_core * count * cores.get(count, cores[last.workers]) for count in counts]


def _predicted_throughput(prediction: Prediction | None, rows: Sequence[Row]) -> dict[int, float]:
    """Returns the predicted images per second by number of workers, at the weak rows' batch."""
    batches = [row.per_worker_batch for row in rows if row.scaling == "weak"]
    if prediction is None or not batches:
        return {}
    return {
        point.workers: 1000 * point.workers * batches[0] / point.step_ms
        for point in sorted(prediction.points, key=lambda point: point.workers)
    }


def _tick_label(row: Row, with_strategy: bool) -> str:
    strategy = f" {row.strategy}" if with_strategy else ""
    return f"{row.scaling}{strategy} {row.placement}, batch {row.global_batch}"
