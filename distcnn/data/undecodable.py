"""Names every image that cannot be decoded: the first few in the message, all in a file."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from distcnn.errors import DataError
from distcnn.runtime.files import locked, replacing
from distcnn.runtime.text import printable

_MAX_EXAMPLES = 3


class UndecodableImageError(DataError):
    """An image that was read during a run cannot be decoded."""


def name_all(descriptions: Sequence[str], folder: Path) -> str:
    """Returns bad images as part of a message, and writes all of them to a file if they are many.

    Args:
        descriptions: The images, each as `path (reason)` on one line.
        folder: Where to write `undecodable-HASH.txt`, one image a line. The same images always
            have the same file.

    Returns:
        The first few, and the name of the file or why it cannot be written.
    """
    text = ", ".join(descriptions[:_MAX_EXAMPLES])
    if len(descriptions) <= _MAX_EXAMPLES:
        return text
    # Paths need not be UTF-8, and are written as they are.
    content = "".join(f"{line}\n" for line in descriptions).encode("utf-8", "surrogateescape")
    path = folder / f"undecodable-{hashlib.sha256(content).hexdigest()[:16]}.txt"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(path.with_suffix(".lock")), replacing(path) as partial:
            partial.write_bytes(content)
    except OSError as error:
        return f"{text}, ... (cannot list all in {printable(path)}: {error.strerror})"
    return f"{text}, ... (all are listed in {printable(path)})"
