"""Reading YAML that comes from elsewhere: bounded in size, depth and repetition."""

from pathlib import Path
from typing import Any

import yaml

MAX_BYTES = 1_000_000
"""Size of the largest YAML file that is read."""

_MAX_DEPTH = 30


def read_yaml(path: Path) -> Any:
    """Reads a YAML file of plain values.

    Args:
        path: The file.

    Raises:
        OSError: If the file cannot be read.
        ValueError: If it is too large or too deep, repeats parts by aliases (which a few lines can
            expand to gigabytes), is not UTF-8, or is not YAML of plain values; says which, on one
            line.
    """
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    try:
        text = content.decode("utf-8")
        _require_plain(text)
        return yaml.safe_load(text)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except Exception as error:  # of any kind: PyYAML trusts the values of explicit tags
        raise ValueError(" ".join(str(error).split())[:300]) from None


def _require_plain(text: str) -> None:
    """Checks the structure before anything is built from it."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {_line(event)} repeats a part by *{event.anchor}; write it out")
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > _MAX_DEPTH:
            raise ValueError(f"line {_line(event)} is nested more than {_MAX_DEPTH} levels deep")


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0
