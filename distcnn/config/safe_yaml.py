"""Reading YAML that comes from elsewhere: bounded in size, depth and repetition."""

import hashlib
import re
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

MAX_BYTES = 1_000_000
"""Size of the largest YAML file that is read."""

_MAX_DEPTH = 30
_SEAL = re.compile(rb"# sha256 ([0-9a-f]{64}) of the lines below[^\n]*\n")


def sealed(text: str) -> str:
    """Returns YAML with a first line, a comment, by which `read_yaml` notices damage.

    Args:
        text: The YAML.
    """
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"# sha256 {digest} of the lines below; delete this line if you edit them\n{text}"


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
            expand to gigabytes), is not UTF-8, is not YAML of plain values, or is `sealed` and was
            changed; says which, on one line.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise ValueError("it is not a regular file")  # a FIFO would block
    with path.open("rb") as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    seal = _SEAL.match(content)
    if seal and hashlib.sha256(content[seal.end() :]).hexdigest() != seal[1].decode():
        raise ValueError(
            "it does not match the checksum in its first line; delete that line if you edited the "
            "file on purpose"
        )
    try:
        text = content.decode("utf-8")
        return yaml.load(text, _BoundedLoader)
    except UnicodeDecodeError as error:
        raise ValueError(f"byte {error.start} is not UTF-8") from None
    except Exception as error:  # of any kind: PyYAML trusts the values of explicit tags
        raise ValueError(" ".join(str(error).split())[:300]) from None
