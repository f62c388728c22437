"""Image files: which names they have, and reading them from regular files only."""

import os
import stat

from distcnn.runtime.text import printable, valid_unicode

EXTENSIONS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".pjpeg", ".pjp"),
        *(".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".avif"),
    }
)
"""Lower-case extensions of the files that are taken for images in a folder."""

MAX_BYTES = 512_000_000
"""Size of the largest file that is read."""

# What operating systems, archivers and servers leave in folders, in lower case.
_JUNK = frozenset(
    {
        *("thumbs.db", "ehthumbs.db", "desktop.ini", "__macosx", "@eadir", "lost+found"),
        "$recycle.bin",
    }
)
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def is_ignored(name: str) -> bool:
    """Returns whether a file or folder of this name is never an image: hidden, or known junk."""
    return name.startswith(".") or name.lower() in _JUNK


def other_kind(status: os.stat_result) -> str | None:
    """Returns what a file is if it is not a regular one, such as `a FIFO`."""
    kind = stat.S_IFMT(status.st_mode)
    return None if kind == stat.S_IFREG else _KINDS.get(kind, "a special file")


def read_image_file(path: bytes) -> bytes:
    """Returns the content of a regular file, which links may lead to.

    No other file is opened: a FIFO would block, and a device might never end.

    Args:
        path: The file, as the system encodes its name.

    Raises:
        ValueError: The file is of another kind, too large, or cannot be read. The message is
            `path: reason`, with the path as `shown_path` returns it.
    """
    try:
        _require_regular(os.stat(path))  # noqa: PTH116 - millions of paths, as bytes
        # It may have been replaced since; then opening it does not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
        with os.fdopen(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            _require_regular(status)
            return file.read(status.st_size)
    except OSError as error:
        raise ValueError(f"{shown_path(path)}: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{shown_path(path)}: {error}") from None


def shown_path(path: bytes | str) -> str:
    """Returns a path as messages show it, in valid Unicode on one line."""
    return valid_unicode(printable(os.fsdecode(path)))


def _require_regular(status: os.stat_result) -> None:
    kind = other_kind(status)
    if kind is not None:
        raise ValueError(f"{kind}; expected a regular file")
    if status.st_size > MAX_BYTES:
        raise ValueError(
            f"{status.st_size / 1e6:,.0f} MB; expected at most {MAX_BYTES / 1e6:,.0f} MB"
        )
