"""Tables for the terminal and for Markdown, and how numbers look in them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.table import Table as RichTable

_TEXT_COLUMNS = ("strategy", "scaling", "what", "precision", "verdict", "side", "settings")
_WRAPPED_COLUMNS = ("precision", "verdict", "settings")


@dataclass(frozen=True)
class Table:
    """A table in no particular format; line breaks in headings are those of the terminal."""

    title: str
    headings: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    notes: tuple[str, ...] = ()


def number(value: float) -> str:
    """Formats a number with four significant digits, all integer digits, at most 3 decimals."""
    exponent = math.floor(math.log10(float(f"{abs(value):.3e}"))) if value else 0
    return f"{value:.{min(max(3 - exponent, 0), 3)}f}"


def rate(value: float) -> str:
    """Formats a number, without decimals from 100 on."""
    return f"{value:,.0f}" if value >= 100 else number(value)


def percent(value: float | None) -> str:
    """Formats a fraction as a percentage; None is a dash."""
    return "-" if value is None else f"{value:.1%}"


def as_rich(table: Table) -> RichTable:
    """Returns the table for the terminal."""
    rich = RichTable(
        box=box.SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False, show_edge=False
    )
    for heading in table.headings:
        rich.add_column(
            heading,
            justify="left" if heading in _TEXT_COLUMNS else "right",
            no_wrap=heading not in _WRAPPED_COLUMNS,
            overflow="fold",
        )
    for row in table.rows:
        rich.add_row(*row)
    return rich


def as_markdown(table: Table) -> str:
    """Returns the table as GitHub Markdown."""
    headings = [heading.replace("\n", " ") for heading in table.headings]
    rules = [":--" if heading in _TEXT_COLUMNS else "--:" for heading in table.headings]
    rows = [[escape(cell) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (headings, rules, *rows))


def escape(text: str) -> str:
    """Escapes what Markdown would interpret, on one line."""
    return re.sub(r"([\\`*|<])", r"\\\1", " ".join(text.split()))
