"""Checks where a command is to write before it works."""

import os
from pathlib import Path

from distcnn.errors import UsageError
from distcnn.runtime.text import printable


def require_writable(flag: str, path: str | Path | None) -> None:
    """Refuses the name of an output file that cannot be written.

    Args:
        flag: The flag that the name is given by, for the message.
        path: The file; it may exist. None if there is none to write.

    Raises:
        UsageError: The name is that of a folder, its folder is missing, or either is read-only.
    """
    if path is None:
        return
    file = Path(path)
    shown = f"{flag} {printable(file)}"
    if file.is_dir():
        raise UsageError(f"{shown} is a folder; expected the name of a file")
    if not file.parent.is_dir():
        raise UsageError(
            f"{shown} is in the folder {printable(file.parent)}, which does not exist; expected an "
            "existing one"
        )
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UsageError(f"{shown} cannot be written; expected a file or folder that can be")
