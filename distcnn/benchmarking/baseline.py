"""Comparison with an earlier benchmark: which numbers became worse by more than the noise."""

from collections.abc import Iterable, Iterator

from distcnn.benchmarking.results import Comparison, Results, Row
from distcnn.errors import DistcnnError

MINIMUM_NOISE = 0.05
"""A relative change up to this is never a regression."""

_MAXIMUM_NOISE = 0.9
"""Falling to a tenth of the speed is a regression, however few and scattered the times are."""

_ENVIRONMENT_KEYS = ("cpu", "cores", "gpu")
_SETTINGS = ("model", "parameters", "precision", "fast_path", "data")


def regressions(new: Results, old: Results) -> list[str]:
    """Finds the numbers that became worse by more than the noise.

    Rows with the same `Row.key` are compared by the throughput at the lower quartile of the step
    time, which other programs disturb least. Comparisons with the same kind, batch and precisions
    are compared by their ratios. The noise is the largest of 5 %, the sum of the relative half
    widths of the two confidence intervals, and twice the A/A noise: that of the training step for
    rows, that of the comparison itself for ratios.

    Args:
        new: The results to judge.
        old: The baseline.

    Returns:
        A sentence for each regression: the measured value, the expected value and the noise.

    Raises:
        DistcnnError: If the two have no row in common.
    """
    return [
        sentence
        for sentence in (*_judge_rows(new, old), *_judge_comparisons(new, old))
        if sentence is not None
    ]


def environment_differences(new: Results, old: Results) -> list[str]:
    """Lists differences in hardware and settings, which may explain a difference in speed.

    Args:
        new: The results to judge.
        old: The baseline.

    Returns:
        Phrases such as `cores is 2, was 4`.
    """
    pairs = [(key, new.environment.get(key), old.environment.get(key)) for key in _ENVIRONMENT_KEYS]
    pairs += [(key, getattr(new, key), getattr(old, key)) for key in _SETTINGS]
    return [f"{key} is {now}, was {before}" for key, now, before in pairs if now != before]


def _judge_rows(new: Results, old: Results) -> Iterator[str | None]:
    old_rows = {row.key: row for row in old.rows}
    pairs = [(row, old_rows[row.key]) for row in new.rows if row.key in old_rows]
    if not pairs:
        raise DistcnnError(
            f"there is nothing to compare: measured {_name_all(new.rows)}; expected one of the "
            f"baseline's {_name_all(old.rows)}; use the same strategy, workers and batch"
        )
    training = [
        entry for entry in (*new.comparisons, *old.comparisons) if entry.what == "training step"
    ]
    noise = max((MINIMUM_NOISE, *(2 * entry.noise for entry in training)))
    for now, before in pairs:
        yield _judge(
            _name(now),
            "{:,.1f} images/s",
            _throughput(now),
            _throughput(before),
            max(noise, _row_noise(now) + _row_noise(before)),
        )


def _judge_comparisons(new: Results, old: Results) -> Iterator[str | None]:
    old_comparisons = {_comparison_key(entry): entry for entry in old.comparisons}
    for now in new.comparisons:
        before = old_comparisons.get(_comparison_key(now))
        if before is None:
            continue
        yield _judge(
            f"{now.what}, batch {now.batch}, {now.plain_precision} plain and "
            f"{now.distcnn_precision} distcnn",
            "{:.3f} times as fast as the plain script",
            now.ratio,
            before.ratio,
            max(
                MINIMUM_NOISE,
                2 * max(now.noise, before.noise),
                _ratio_noise(now) + _ratio_noise(before),
            ),
        )


def _judge(name: str, template: str, now: float, before: float, noise: float) -> str | None:
    """Returns a sentence if a value, where higher is better, fell by more than the noise."""
    noise = min(noise, _MAXIMUM_NOISE)
    limit = before * (1 - noise)
    if now >= limit:
        return None
    return (
        f"{name}: measured {template.format(now)}, {1 - now / before:.1%} less than the baseline's "
        f"{template.format(before)}; expected at least {template.format(limit)} (noise {noise:.1%})"
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
