"""Finding the image files that a user names."""

import stat
from collections.abc import Sequence
from pathlib import Path

from distcnn.data.folder_layout import entries, is_folder
from distcnn.data.image_file import other_kind
from distcnn.errors import DataError
from distcnn.runtime.text import printable


def find_images(names: Sequence[str | Path]) -> list[Path]:
    """Returns image files, those in folders included, in the order given.

    Args:
        names: Files, or folders that are searched to any depth; hidden files and folders, and known
            junk, are left out. Links are followed, into each folder once.

    Raises:
        DataError: If one does not exist or is neither a regular file nor a folder, if a folder
            cannot be read, or if one holds no files.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        try:
            status = path.stat()
        except FileNotFoundError:
            raise DataError(f"the image {printable(path)} does not exist") from None
        except OSError as error:
            raise DataError(
                f"the image {printable(path)} cannot be read: {error.strerror}"
            ) from None
        if stat.S_ISDIR(status.st_mode):
            inside = _files_below(path)
            if not inside:
                raise DataError(f"the folder {printable(path)} contains no files; expected images")
            paths += inside
        elif (kind := other_kind(status)) is not None:
            raise DataError(
                f"the image {printable(path)} is {kind}; expected a regular file or a folder"
            )
        else:
            paths.append(path)
    return paths


def _files_below(top: Path) -> list[Path]:
    files: list[Path] = []
    links: list[Path] = []
    folders = [top]  # before links: a folder that is also linked to keeps its name
    seen: set[tuple[int, int]] = set()
    while folders or links:
        folder = folders.pop() if folders else links.pop()
        status = folder.stat()
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for path in entries(folder):
            if not is_folder(path):
                files.append(path)
            elif path.is_symlink():
                links.append(path)
            else:
                folders.append(path)
    return sorted(files)
