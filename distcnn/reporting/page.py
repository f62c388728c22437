"""The page of the report."""

import datetime
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distcnn.reporting.markup import text, tiles
from distcnn.reporting.style import STYLE
from distcnn.reporting.training import (
    Tile,
    curves_section,
    environment_section,
    restarts_section,
    settings_section,
    training_tiles,
)
from distcnn.storage.run_list import RunRecord
from distcnn.version import __version__

_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def make_page(
    run: RunRecord,
    environment: dict[str, Any],
    restarts: list[dict[str, Any]],
    note: str,
    *,
    evaluated: Sequence[str] = (),
    scores: Sequence[Tile] = (),
) -> str:
    """Returns the report on a run as HTML.

    Args:
        run: What the run directory says.
        environment: Content of its `environment.json`.
        restarts: Its restarts.
        note: Why it was not evaluated; empty if it was.
        evaluated: The sections on its evaluation, as HTML.
        scores: The key figures of its evaluation.
    """
    name = Path(run.path).resolve().name
    sections = [
        curves_section(run),
        *evaluated,
        restarts_section(restarts),
        settings_section(run),
        environment_section(environment),
    ]
    figures = [*scores, *training_tiles(run, with_test=not scores)]
    content = "".join(sections)
    about = f"<p>{text(note)}</p>" if note else ""
    today = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(name)}: distcnn</title><style>{STYLE}</style></head><body>"
        f'<header><h1>{text(name)}</h1><div class="soft">{text(_subtitle(run, environment))}</div>'
        f"<nav>{_contents(content)}</nav>{about}{tiles(figures)}</header>"
        f"<main>{content}</main><footer>distcnn {__version__}, {today}</footer></body></html>\n"
    )


def _subtitle(run: RunRecord, environment: dict[str, Any]) -> str:
    resolved = environment.get("resolved", {})
    parts = [
        f"recipe {run.settings['recipe']}" if run.settings.get("recipe") else "",
        f"model {resolved['model']}" if resolved.get("model") else "",
        f"data {resolved['data']}" if resolved.get("data") else "",
        str(environment.get("started", "")).replace("T", " ").replace("+00:00", " UTC"),
        run.state,
    ]
    return " · ".join(part for part in parts if part)


def _contents(content: str) -> str:
    found = re.findall(r'<section id="(\w+)"><h2>([^<]*)</h2>', content)
    return "".join(f'<a href="#{name}">{title}</a>' for name, title in found)
