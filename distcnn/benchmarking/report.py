"""The report of a benchmark: tables on the terminal, and files in several formats."""

import csv
import dataclasses
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console

from distcnn.benchmarking.peers.tables import floor_table, peer_table
from distcnn.benchmarking.plot import scaling_figure
from distcnn.benchmarking.results import Comparison, Prediction, Results, Row
from distcnn.benchmarking.tables import Table, as_markdown, as_rich, escape, number, percent, rate
from distcnn.distribute.strategies import has_shared_memory
from distcnn.inference.plots import to_png
from distcnn.runtime.files import replacing, write_json, write_text

_NOTABLE_IMBALANCE = 0.02

OVERSUBSCRIBED_NOTE = "* these workers share cores or GPUs: this is not scaling"


def print_report(results: Results) -> None:
    """Prints the report, which fits into 100 columns. Output to a file is not wrapped.

    Args:
        results: Results of the benchmark.
    """
    console = Console(markup=False, emoji=False, highlight=False)
    if not console.is_terminal:
        console.width = 10_000
    for name, text in {"command": results.command, **_facts(results)}.items():
        console.print(f"{name:15} {text}", soft_wrap=True)
    for table in _tables(results):
        console.print(f"\n{table.title}", style="bold", soft_wrap=True)
        console.print(as_rich(table))
        for note in table.notes:
            console.print(note, soft_wrap=True)


def to_csv(results: Results) -> str:
    """Returns the rows as CSV: all fields of `Row`, and the throughput per worker.

    Args:
        results: Results of the benchmark.
    """
    file = io.StringIO()
    derived = "images_per_second_per_worker"
    names = [field.name for field in dataclasses.fields(Row)]
    writer = csv.DictWriter(file, [*names, derived], lineterminator="\n")
    writer.writeheader()
    for row in results.rows:
        writer.writerow({**dataclasses.asdict(row), derived: row.images_per_second_per_worker})
    return file.getvalue()


def to_markdown(results: Results) -> str:
    """Returns the report as GitHub Markdown, which embeds `scaling.png` from the same folder.

    Args:
        results: Results of the benchmark.
    """
    facts = [f"- {name}: {escape(text)}" for name, text in _facts(results).items()]
    parts = ["# Benchmark", f"```\n{results.command}\n```", "\n".join(facts)]
    if results.rows:
        parts.append("![Throughput by workers, and where the step time goes](scaling.png)")
    for table in _tables(results):
        parts += [f"## {escape(table.title)}", as_markdown(table), *map(escape, table.notes)]
    return "\n\n".join(parts) + "\n"


def write_report(results: Results, folder: Path) -> None:
    """Writes `results.json`, `results.csv`, `results.md`, `scaling.png` and `environment.json`.

    `scaling.png` is left out if there are no rows to draw.

    Args:
        results: Results of the benchmark.
        folder: Folder for the files; created if missing.

    Raises:
        OSError: If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "results.json", results.to_json())
    write_text(folder / "results.csv", to_csv(results))
    write_text(folder / "results.md", to_markdown(results))
    if results.rows:
        with replacing(folder / "scaling.png") as partial:
            partial.write_bytes(to_png(scaling_figure(results)))
    write_json(folder / "environment.json", results.environment)


def _facts(results: Results) -> dict[str, str]:
    environment = results.environment
    hardware = [str(environment[key]) for key in ("cpu", "gpu") if environment.get(key)]
    if environment.get("cores"):
        hardware.append(f"{environment['cores']} CPU cores")
    fast = "on" if results.fast_path else "off"
    return {
        "date": results.date,
        "hardware": ", ".join(hardware) or "unknown",
        "model": f"{results.model}, {results.parameters:,} parameters, recipe {results.recipe}",
        "precision": f"{results.precision}, fast path {fast}",
        "data": results.data,
        **({"link": f"{results.link} each way"} if results.link else {}),
        "efficiency": results.denominator,
        "share of peak": f"relative to {rate(results.peak_gflops)} GFLOP/s per core or GPU",
    }


def _tables(results: Results) -> Iterator[Table]:
    for scaling, batch in (("weak", "per worker"), ("strong", "of all workers")):
        rows = [row for row in results.rows if row.scaling == scaling]
        if rows:
            yield _scaling_table(f"{scaling.capitalize()} scaling (batch {batch})", rows)
    if results.rows:
        yield _time_fractions_table(results.rows)
    if results.comparisons:
        yield _comparison_table(results.comparisons)
    if results.peers is not None:
        yield peer_table(results.peers)
    if results.floor is not None:
        yield floor_table(results.floor)
    if results.prediction is not None:
        over_sockets = any(
            row.cores_per_worker and has_shared_memory(row.strategy) for row in results.rows
        )
        yield _prediction_table(results.prediction, over_sockets=over_sockets)


def _scaling_table(title: str, rows: Sequence[Row]) -> Table:
    headings = (
        _workers_heading(rows),
        "batch",
        "images/s",
        "per\nworker",
        "step\np50\nms",
        "95 %\ninterval",
        "p95\nms",
        "efficiency",
        "memory\nMB",
        "share\nof\npeak",
    )
    lines = [
        (
            row.placement,
            f"{row.per_worker_batch if row.scaling == 'weak' else row.global_batch:.10g}",
            rate(row.images_per_second),
            rate(row.images_per_second_per_worker),
            number(row.step_ms_p50),
            f"{number(row.step_ms_p50_low)}-{number(row.step_ms_p50_high)}",
            number(row.step_ms_p95),
            percent(row.efficiency),
            f"{row.peak_memory_mb:.0f}",
            percent(row.share_of_peak),
        )
        for row in rows
    ]
    return _with_strategy(Table(title, headings, lines, _notes(rows)), rows)


def _time_fractions_table(rows: Sequence[Row]) -> Table:
    headings = (
        "scaling",
        _workers_heading(rows),
        "global\nbatch",
        "input\n(wait)",
        "input alone\nimages/s",
        "compute",
        "comm.",
        "verdict",
    )
    lines = [
        (
            row.scaling,
            row.placement,
            f"{row.global_batch}",
            f"{percent(row.input_share)} ({percent(row.input_wait)})",
            rate(row.input_images_per_second),
            percent(row.compute_share),
            percent(row.communication_share),
            row.verdict,
        )
        for row in rows
    ]
    notes = (*_notes(rows), *_imbalance_notes(rows), *_overlap_notes(rows), *_noise_notes(rows))
    return _with_strategy(Table("Where the step time goes", headings, lines, notes), rows)


def _imbalance_notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.imbalance_share >= _NOTABLE_IMBALANCE:
            yield (
                f"{row.strategy}, {row.placement}, global batch {row.global_batch}: the average "
                f"worker waits {percent(row.imbalance_share)} of a step for the slowest one to "
                "compute; that is part of compute"
            )


def _overlap_notes(rows: Sequence[Row]) -> Iterator[str]:
    for row in rows:
        if row.communication_share_at_once is not None:
            yield (
                f"{row.strategy}, {row.placement}, global batch {row.global_batch}: communication "
                f"takes {percent(row.communication_share)} of a step, and would take "
                f"{percent(row.communication_share_at_once)} if gradients were reduced at once, "
                "after the backward pass"
            )


def _noise_notes(rows: Sequence[Row]) -> Iterator[str]:
    noises = [row.communication_noise for row in rows if row.communication_noise is not None]
    if noises:
        yield (
            "the same step without communication, measured twice, differs by up to "
            f"{percent(max(noises))} of a step (A/A)"
        )


def _comparison_table(comparisons: Sequence[Comparison]) -> Table:
    headings = (
        "what",
        "batch",
        "repeats",
        "plain\nms",
        "distcnn\nms",
        "times\nas fast",
        "95 %\ninterval",
        "A/A\nnoise",
        "precision",
    )
    lines = [
        (
            entry.what,
            f"{entry.batch}",
            f"{entry.repeats}",
            number(entry.plain_ms),
            number(entry.distcnn_ms),
            f"{entry.ratio:.3f}",
            f"{entry.ratio_low:.3f}-{entry.ratio_high:.3f}",
            percent(entry.noise),
            " / ".join(dict.fromkeys((entry.plain_precision, entry.distcnn_precision))),
        )
        for entry in comparisons
    ]
    return Table(
        "distcnn against a plain Keras script (plain / distcnn), in turn in one process",
        headings,
        lines,
    )


def _prediction_table(prediction: Prediction, *, over_sockets: bool) -> Table:
    headings = ("workers", "step ms", "efficiency", "measured\nefficiency", "error of\nstep ms")
    lines = [
        (
            f"{point.workers}",
            number(point.step_ms),
            percent(point.efficiency),
            percent(point.measured_efficiency),
            "-" if point.error is None else f"{point.error:+.1%}",
        )
        for point in prediction.points
    ]
    notes = [
        f"from {prediction.step_fixed_ms:.4g} ms per step, {prediction.step_ms_per_image:.4g} ms "
        f"per image, and {prediction.bytes_per_step / 1e6:.4g} MB per step reduced at "
        f"{rate(prediction.bandwidth_mb_per_s)} MB/s with a latency of "
        f"{prediction.latency_ms:.4g} ms"
    ]
    if prediction.overlap:
        notes.append(
            f"reduced during the last {percent(prediction.overlap)} of the computing, but for "
            f"{prediction.last_bytes / 1e6:.4g} MB"
        )
    if over_sockets:
        notes.append("over Horovod's sockets, as between hosts, not through shared memory")
    return Table("Predicted weak scaling", headings, lines, tuple(notes))


def _with_strategy(table: Table, rows: Sequence[Row]) -> Table:
    """Adds the strategy to the title, or a column for it if there are several."""
    strategies = {row.strategy for row in rows}
    if len(strategies) == 1:
        return dataclasses.replace(table, title=f"{table.title}, {strategies.pop()}")
    return dataclasses.replace(
        table,
        headings=("strategy", *table.headings),
        rows=[(row.strategy, *line) for row, line in zip(rows, table.rows, strict=True)],
    )


def _workers_heading(rows: Sequence[Row]) -> str:
    return "workers" if all(row.cores_per_worker is None for row in rows) else "workers\nx cores"


def _notes(rows: Sequence[Row]) -> tuple[str, ...]:
    return (OVERSUBSCRIBED_NOTE,) if any(row.oversubscribed for row in rows) else ()
