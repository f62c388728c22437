"""Finding the image files that a user names."""

from collections.abc import Sequence
from pathlib import Path

from distcnn.errors import DataError


def find_images(names: Sequence[str | Path]) -> list[Path]:
    """Returns image files, those in folders included, in the order given.

    Args:
        names: Files, or folders that are searched to any depth; hidden files are left out.

    Raises:
        DataError: If one does not exist, or a folder holds no files.
    """
    paths: list[Path] = []
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(
                p for p in path.rglob("*") if p.is_file() and not p.name.startswith(".")
            )
            if not inside:
                raise DataError(f"the folder {path} contains no files; expected images")
            paths += inside
        elif path.exists():
            paths.append(path)
        else:
            raise DataError(f"the image {path} does not exist")
    return paths
