"""The layout of an image folder: its splits, classes and images, and what does not belong in it."""

import contextlib
import logging
import os
import stat
from collections import Counter
from pathlib import Path

import numpy as np

from distcnn.data.file_list import FileList
from distcnn.data.folder_index import FolderIndex
from distcnn.data.image_file import EXTENSIONS, is_ignored, other_kind
from distcnn.errors import DataError
from distcnn.runtime.text import printable, valid_unicode

SPELLINGS: dict[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
"""Names of the folders of each split, in any case."""

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson")
"""Extensions of files that often hold the labels of images."""

_logger = logging.getLogger("distcnn")


def find_splits(root: Path) -> dict[str, Path]:
    """Returns the folders of the splits that exist, by the keys of `SPELLINGS`.

    The root itself is the folder of `train` if it holds class folders and no split.

    Raises:
        DataError: There are neither splits nor class folders, or a split has two folders.
    """
    _require_folder(root)
    folders = [path for path in entries(root) if is_folder(path)]
    splits: dict[str, Path] = {}
    for split, spellings in SPELLINGS.items():
        found = [folder for folder in folders if folder.name.lower() in spellings]
        if len(found) > 1:
            names = " and ".join(printable(folder.name) for folder in found)
            raise DataError(
                f"data.dir {printable(root)} contains the folders {names}; expected one of them; "
                "merge or rename them"
            )
        if found:
            splits[split] = found[0]
    if not splits and any(map(_holds_images, folders)):
        return {"train": root}
    if "train" not in splits and "test" not in splits:
        raise DataError(_explain_missing_splits(root, folders))
    return splits


def _holds_images(folder: Path) -> bool:
    return any(_why_no_image(entry) is None for entry in _scan(folder))


def find_classes(folder: Path) -> dict[str, int]:
    """Returns the names of the class folders in a split's folder, sorted, with their labels.

    Raises:
        DataError: There are fewer than two, or two that differ in bytes that are not UTF-8 only.
    """
    names = [path.name for path in entries(folder) if is_folder(path)]
    where = f"{printable(folder)} contains"
    if not names:
        raise DataError(
            f"{where} no class folders; expected {printable(folder)}/<class>/*.jpg, one folder per "
            "class"
        )
    if len(names) == 1:
        raise DataError(
            f"{where} 1 class ({printable(names[0])}); expected at least 2; add a folder for every "
            "other class"
        )
    name, count = Counter(map(valid_unicode, names)).most_common(1)[0]
    if count > 1:
        raise DataError(
            f"{where} {count} class folders named {printable(name)}, which differ only in bytes "
            "that are not UTF-8; rename them"
        )
    return {name: label for label, name in enumerate(names)}


def find_labelled_images(
    part: Path, classes: dict[str, int], on_error: str, index: FolderIndex
) -> tuple[FileList, np.ndarray]:
    """Returns the images of a split, sorted within each class, and their labels (int64).

    Args:
        part: The split's folder.
        classes: Names of class folders with their labels.
        on_error: What to do with entries that are not images: fail or skip, with a warning.
        index: What is known of the folders; brought up to date.

    Raises:
        DataError: A class is unknown or has no images, or there are entries that are not images.
    """
    names: list[bytes] = []
    labels: list[np.ndarray] = []
    strays: list[tuple[Path, str]] = []
    for folder in entries(part):
        if not is_folder(folder):
            strays.append((folder, _why_outside(folder)))
            continue
        if folder.name not in classes:
            raise DataError(
                f"{printable(folder)} is a class that the other splits lack; expected one of their "
                f"{len(classes)} classes; remove the folder or add training images"
            )
        images, others = _images_of(folder, index)
        below = os.path.join(os.fsencode(folder.name), b"")  # noqa: PTH118 - as bytes
        names += [below + name for name in images]
        labels.append(np.full(len(images), classes[folder.name], np.int64))
        strays += others
    if not names:
        shown = printable(part)
        raise DataError(f"{shown} contains no class folders; expected {shown}/<class>/*.jpg")
    if strays:
        _report_strays(part, strays, on_error)
    index.save(len(names))
    return FileList(os.fsencode(part), names), np.concatenate(labels)


def _why_outside(path: Path) -> str:
    why = "outside of the class folders"
    if path.suffix.lower() in _TABLES:
        return f"{why}; to take the labels from it, pass --data.labels {printable(path)}"
    return why


def _images_of(folder: Path, index: FolderIndex) -> tuple[list[bytes], list[tuple[Path, str]]]:
    """Returns what `_sort_out` does, with names as bytes; by the index if it knows the folder."""
    known = index.find(folder)
    if known is not None:
        return known, []
    before = folder.stat()
    images, others = _sort_out(folder)
    encoded = [os.fsencode(name) for name in images]
    if not others:
        index.add(folder, encoded, before)
    return encoded, others


def warn_of_unused_folders(root: Path, splits: dict[str, Path], classes: dict[str, int]) -> None:
    """Warns of folders that look like splits, as they contain a class, but have another name."""
    for folder in entries(root):
        if folder in splits.values() or not is_folder(folder):
            continue
        if any(is_folder(folder / name) for name in classes):
            _logger.warning(
                "warning: %s looks like a split of the images, but is not used; expected one of "
                "the names %s",
                printable(folder),
                ", ".join(name for names in SPELLINGS.values() for name in names),
            )


def entries(folder: Path) -> list[Path]:
    """Returns what a folder contains, sorted, without hidden files and known junk.

    Raises:
        DataError: The folder cannot be read.
    """
    return [folder / entry.name for entry in _scan(folder)]


def _scan(folder: Path) -> list[os.DirEntry[str]]:
    """Returns the entries of a folder as `entries` does, with what the system told of them."""
    try:
        with os.scandir(folder) as found:
            kept = [entry for entry in found if not is_ignored(entry.name)]
    except OSError as error:
        raise DataError(
            f"the folder {printable(folder)} cannot be read: {error.strerror}; expected a folder "
            "of images"
        ) from None
    return sorted(kept, key=lambda entry: entry.name)


def is_folder(path: Path) -> bool:
    """Returns whether a path is that of a folder, or of a link to one, that can be examined."""
    try:
        return stat.S_ISDIR(path.stat().st_mode)
    except OSError:
        return False


def _sort_out(folder: Path) -> tuple[list[str], list[tuple[Path, str]]]:
    """Returns the names of the images in a class folder, sorted.

    Also returns its other entries, with what is wrong with each.
    """
    images: list[str] = []
    others: list[tuple[Path, str]] = []
    for entry in _scan(folder):
        reason = _why_no_image(entry)
        if reason is None:
            images.append(entry.name)
        else:
            others.append((folder / entry.name, reason))
    if not images:
        shown = printable(folder)
        nested = next((path for path, _ in others if is_folder(path)), None)
        remedy = "add some or remove the folder"
        if nested is not None:
            remedy = f"move those of the folder {printable(nested.name)} in it up to {shown}"
        raise DataError(
            f"the class folder {shown} contains no images ({', '.join(sorted(EXTENSIONS))}); "
            f"{remedy}"
        )
    return images, others


def _why_no_image(entry: os.DirEntry[str]) -> str | None:
    """Returns what is wrong with an entry of a class folder, mostly without a system call."""
    suffix = os.path.splitext(entry.name)[1].lower()  # noqa: PTH122 - a million names
    with contextlib.suppress(OSError):
        if suffix in EXTENSIONS and entry.is_file():
            return None
    try:
        status: os.stat_result | None = entry.stat()
    except OSError:
        status = None  # such as a dangling link; decoding reports it
    if status is not None and stat.S_ISDIR(status.st_mode):
        parent = Path(entry.path).parent
        return f"a folder in a class folder; move its images up to {printable(parent)}"
    if suffix not in EXTENSIONS:
        return "its name has none of the extensions " + ", ".join(sorted(EXTENSIONS))
    kind = other_kind(status) if status is not None else None
    return f"{kind}; expected a regular file" if kind is not None else None


def _report_strays(part: Path, strays: list[tuple[Path, str]], on_error: str) -> None:
    # A folder first, as it may hold many images.
    path, reason = min(strays, key=lambda stray: not is_folder(stray[0]))
    count = len(strays)
    what = "1 entry is not an image" if count == 1 else f"{count} entries are not images"
    message = (
        f"{printable(part)}: {what} in a class folder; the first is {printable(path)} ({reason})"
    )
    if on_error == "fail":
        raise DataError(
            f"{message}; expected {printable(part)}/<class>/*.jpg; remove what is not an image, or "
            "pass --data.on_error skip"
        )
    _logger.warning("%s; skipping what is not an image", message)


def _require_folder(root: Path) -> None:
    expected = f"expected a folder with {printable(root)}/train/<class>/*.jpg"
    try:
        status = root.stat()
    except FileNotFoundError:
        raise DataError(f"data.dir {printable(root)} does not exist; {expected}") from None
    except OSError as error:
        raise DataError(
            f"data.dir {printable(root)} cannot be read: {error.strerror}; {expected}"
        ) from None
    if not stat.S_ISDIR(status.st_mode):
        kind = other_kind(status) or "a file"
        raise DataError(f"data.dir {printable(root)} is {kind}; {expected}")


def _explain_missing_splits(root: Path, folders: list[Path]) -> str:
    shown = printable(root)
    if not entries(root):
        return f"data.dir {shown} is empty; put images into {shown}/train/<class>/*.jpg"
    others = [folder for folder in folders if folder.name.lower() not in SPELLINGS["val"]]
    class_names = [printable(folder.name) for folder in others if _holds_images(folder)]
    if class_names:
        names = ", ".join(class_names[:3]) + (", ..." if len(class_names) > 3 else "")
        return (
            f"data.dir {shown} contains class folders ({names}) beside a folder of validation "
            f"images, but neither train nor test; move them to {shown}/train"
        )
    return (
        f"data.dir {shown} has neither class folders nor a train or test folder; expected "
        f"{shown}/<class>/*.jpg or {shown}/train/<class>/*.jpg"
    )
