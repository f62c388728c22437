"""Reading YAML that comes from elsewhere: bounded in size, depth and repetition."""

from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

MAX_BYTES = 1_000_000
"""Size of the largest YAML file that is read."""

_MAX_DEPTH = 30


class _BoundedLoader(yaml.SafeLoader):
    """Refuses aliases and deep nesting before anything is built from them."""

    _depth = 0

    @override
    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent):
            raise ValueError(f"line {line} repeats a part by *{event.anchor}; write it out")
        nests = isinstance(event, yaml.CollectionStartEvent)
        self._depth += nests
        if self._depth > _MAX_DEPTH:
            raise ValueError(f"line {line} is nested more than {_MAX_DEPTH} levels deep")
        node = super().compose_node(parent, index)
        self._depth -= nests
        return node


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
        return yaml.load(text, _BoundedLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except Exception as error:  # of any kind: PyYAML trusts the values of explicit tags
        raise ValueError(" ".join(str(error).split())[:300]) from None
