"""Comparing a benchmark with an earlier one: what became slower by more than the noise."""

from collections.abc import Iterable

from distcnn.benchmarking.results import Comparison, Results, Row
from distcnn.errors import DistcnnError

MINIMUM_NOISE = 0.05
"""Relative change that is never called a regression."""

_LARGEST_NOISE = 0.9
"""However few and scattered the times are, a tenth of the speed is a regression."""

_ENVIRONMENT_KEYS = ("cpu", "cores", "gpu")
_SETTINGS = ("model", "parameters", "precision", "fast_path", "data")


def regressions(new: Results, old: Results) -> list[str]:
    """Finds what became slower by more than the noise.

    The throughput of rows of the same `Row.key` is compared, from the lower quartile of the step
    time, which other programs disturb least; and the ratios of comparisons of the same kind, batch
    and precisions. The noise is the largest of 5 %, the relative half widths of the two confidence
    intervals together, and twice the A/A noise: of the training step for rows, of itself for a
    ratio.

    Args:
        new: What was measured now.
        old: What to hold it against.

    Returns:
        A sentence for each regression: what was measured, what was expected, the noise.

    Raises:
        DistcnnError: If the two have no row in common.
    """
    rows = {row.key: row for row in old.rows}
    pairs = [(row, rows[row.key]) for row in new.rows if row.key in rows]
    if not pairs:
        raise DistcnnError(
            f"there is nothing to compare: measured were {_name_all(new.rows)}; expected one of "
            f"the baseline's {_name_all(old.rows)}; use the same strategy, workers and batch"
        )
    steps = [e for e in (*new.comparisons, *old.comparisons) if e.what == "training step"]
    noise = max((MINIMUM_NOISE, *(2 * entry.noise for entry in steps)))
    found = [
        _judge(
            _name(now),
            "{:,.1f} images/s",
            _throughput(now),
            _throughput(before),
            max(noise, _row_noise(now) + _row_noise(before)),
        )
        for now, before in pairs
    ]
    comparisons = {_comparison_key(entry): entry for entry in old.comparisons}
    for entry in new.comparisons:
        earlier = comparisons.get(_comparison_key(entry))
        if earlier is not None:
            found.append(
                _judge(
                    f"{entry.what}, batch {entry.batch}, {entry.plain_precision} plain and "
                    f"{entry.distcnn_precision} distcnn",
                    "{:.3f} times as fast as the plain script",
                    entry.ratio,
                    earlier.ratio,
                    max(
                        MINIMUM_NOISE,
                        2 * max(entry.noise, earlier.noise),
                        _ratio_noise(entry) + _ratio_noise(earlier),
                    ),
                )
            )
    return [sentence for sentence in found if sentence is not None]


def environment_differences(new: Results, old: Results) -> list[str]:
    """Lists what else differs, which may explain a difference in speed.

    Args:
        new: What was measured now.
        old: What it is held against.

    Returns:
        Phrases such as `cores is 2, was 4`.
    """
    pairs = [(key, new.environment.get(key), old.environment.get(key)) for key in _ENVIRONMENT_KEYS]
    pairs += [(key, getattr(new, key), getattr(old, key)) for key in _SETTINGS]
    return [f"{key} is {now}, was {before}" for key, now, before in pairs if now != before]


def _judge(name: str, form: str, now: float, before: float, noise: float) -> str | None:
    """Returns a sentence if a value, of which more is better, fell by more than the noise."""
    noise = min(noise, _LARGEST_NOISE)
    limit = before * (1 - noise)
    if now >= limit:
        return None
    return (
        f"{name}: measured {form.format(now)}, {1 - now / before:.1%} less than the baseline's "
        f"{form.format(before)}; expected at least {form.format(limit)} (noise {noise:.1%})"
    )


def _throughput(row: Row) -> float:
    return 1000 * row.global_batch / row.step_ms_p25


def _row_noise(row: Row) -> float:
    return (row.step_ms_p50_high - row.step_ms_p50_low) / 2 / row.step_ms_p50


def _ratio_noise(entry: Comparison) -> float:
    return (entry.ratio_high - entry.ratio_low) / 2 / entry.ratio


def _comparison_key(entry: Comparison) -> tuple[str, int, str, str]:
    return entry.what, entry.batch, entry.plain_precision, entry.distcnn_precision


def _name(row: Row) -> str:
    cores = "" if row.cores_per_worker is None else f", cores per worker {row.cores_per_worker}"
    return (
        f"{row.scaling} scaling, {row.strategy}, workers {row.workers}{cores}, "
        f"global batch {row.global_batch}"
    )


def _name_all(rows: Iterable[Row]) -> str:
    return "; ".join(f"({_name(row)})" for row in rows) or "no rows"
