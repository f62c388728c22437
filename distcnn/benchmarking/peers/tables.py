"""The tables of the comparison with other frameworks, and of the floor."""

from distcnn.benchmarking.peers.results import Floor, PeerComparison
from distcnn.benchmarking.tables import Table, number, percent, rate

_FEW_ROUNDS = 5
_LARGE_NOISE = 0.1
_CROWDED = 1.5
"""Load for each core from which other programs must be running beside the benchmark."""

_BUSY = 0.05
"""From this many cores on, a side that waits disturbs the others."""


def peer_table(comparison: PeerComparison) -> Table:
    """Returns the table of a comparison with other frameworks.

    Args:
        comparison: The comparison.
    """
    headings = (
        "side",
        "precision",
        "step\nms",
        "images/s",
        "times\ndistcnn's",
        "95 %\ninterval",
        "steps",
        "settings",
    )
    lines = [
        (
            row.title,
            row.precision,
            number(row.step_ms),
            rate(row.images_per_second),
            f"{row.ratio:.3f}",
            f"{row.ratio_low:.3f}-{row.ratio_high:.3f}",
            f"{row.steps}",
            "; ".join(row.settings),
        )
        for row in comparison.rows
    ]
    title = f"Training step of batch {comparison.batch}, in turn, each in its own process"
    return Table(title, headings, lines, tuple(_notes(comparison)))


def _notes(comparison: PeerComparison) -> list[str]:
    gpu = f"{comparison.gpu}, " if comparison.gpu else ""
    notes = [
        f"floor of the comparison: {percent(comparison.noise)} (distcnn against itself in another "
        "process)",
        f"{gpu}{comparison.cpu}, {comparison.cores} cores; "
        f"load {comparison.load_before:.2f} before, {comparison.load_after:.2f} after; "
        f"{comparison.rounds} rounds in {comparison.seconds:.0f} s; the batch stays in memory",
    ]
    if comparison.rounds < _FEW_ROUNDS:
        notes.append(
            f"{comparison.rounds} rounds are too few for an interval; raise --budget or "
            "--compare_steps"
        )
    if comparison.load_before > _CROWDED * comparison.cores or comparison.noise > _LARGE_NOISE:
        notes.append(
            "other programs disturb this machine: compare again when it is idle; frameworks that "
            "divide operations evenly among the cores lose most"
        )
    busy = [row for row in comparison.rows if row.idle_cores > _BUSY]
    notes += [
        f"{row.title} kept {row.idle_cores:.2f} cores busy while others were timed" for row in busy
    ]
    return notes + list(comparison.missing)


def floor_table(floor: Floor) -> Table:
    """Returns the table of the step against its convolutions and products.

    Args:
        floor: The measurement.
    """
    headings = ("what", "ms", "step is\ntimes this", "GFLOP/s")
    parts = (
        ("training step, without input", floor.step_ms),
        ("floor: convolutions and products alone", floor.floor_ms),
        (f"{floor.convolutions} convolutions", floor.convolutions_ms),
        (f"{floor.products} matrix products", floor.products_ms),
        ("all arithmetic at the peak of a large product", floor.peak_ms),
    )
    whole = ("training step, without input", "floor: convolutions and products alone")
    lines = [
        (
            what,
            number(ms),
            f"{floor.step_ms / ms:.3f}" if ms else "-",
            "-" if what not in whole else rate(1e3 * floor.gflop / ms),
        )
        for what, ms in parts[:-1]
    ]
    what, ms = parts[-1]
    lines.append((what, number(ms), f"{floor.step_ms / ms:.3f}", rate(floor.peak_gflops)))
    title = f"Training step of batch {floor.batch} and its floor, {floor.precision}, in turn"
    return Table(
        title,
        headings,
        lines,
        (
            f"the step is {floor.ratio:.3f} times the floor ({floor.ratio_low:.3f}-"
            f"{floor.ratio_high:.3f}; the floor differs from itself by {percent(floor.noise)})",
            f"forward and backward with the gradients of weights, {floor.arrangement}, "
            f"{number(floor.gflop)} GFLOP, {floor.cores} cores, {floor.rounds} rounds",
        ),
    )
