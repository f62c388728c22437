"""The report on images: counts, sizes, formats, damage, duplicates and leaks."""

import os
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from distcnn.inspecting.listing import Listing
from distcnn.inspecting.pictures import Picture

SPLITS = ("train", "validation", "test")


def make_report(listing: Listing, pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns the report as JSON can hold it.

    Args:
        listing: The images.
        pictures: What is known of each.
    """
    good = [picture for picture in pictures if picture.damage is None]
    paths = [os.fsdecode(path) for path in listing.paths]
    groups = _duplicates(listing, pictures, paths)
    return {
        "path": str(listing.root),
        "task": listing.task,
        "reading": listing.reading,
        "images": len(pictures),
        "bytes": sum(picture.size for picture in pictures),
        "splits": {
            split: int(np.count_nonzero(listing.splits == split))
            for split in SPLITS
            if split in listing.splits
        },
        "test_is_drawn": listing.is_drawn,
        "classes": _classes(listing),
        "formats": dict(Counter(picture.format for picture in good).most_common()),
        "modes": dict(Counter(picture.mode for picture in good).most_common()),
        "width": _range([picture.width for picture in good]),
        "height": _range([picture.height for picture in good]),
        **_statistics(good),
        "damaged": [
            {"path": path, "reason": picture.damage}
            for path, picture in zip(paths, pictures, strict=True)
            if picture.damage is not None
        ],
        "duplicates": groups,
        "leaks": [group for group in groups if len(set(group["splits"])) > 1],
        "conflicts": [group for group in groups if len(set(group["labels"])) > 1],
    }


def _classes(listing: Listing) -> list[dict[str, Any]]:
    """Returns the number of images of each class by split; or the range of each number."""
    rows: list[dict[str, Any]] = []
    for index, name in enumerate(listing.classes):
        if listing.task == "regression":
            numbers = listing.labels[:, index].astype(np.float64)
            rows.append(
                {
                    "class": name,
                    "min": float(numbers.min()),
                    "mean": float(numbers.mean()),
                    "deviation": float(numbers.std()),
                    "max": float(numbers.max()),
                }
            )
            continue
        has = listing.labels == index
        if listing.task == "multilabel":
            has = listing.labels[:, index]
        counts = {
            split: int(np.count_nonzero(has & (listing.splits == split)))
            for split in SPLITS
            if split in listing.splits
        }
        rows.append({"class": name, "images": int(np.count_nonzero(has)), **counts})
    return rows


def _range(values: list[int]) -> dict[str, float] | None:
    if not values:
        return None
    return {"min": min(values), "median": float(np.median(values)), "max": max(values)}


def _statistics(pictures: Sequence[Picture]) -> dict[str, Any]:
    """Returns mean and deviation of the pixels of each colour; every image counts as much."""
    if not pictures:
        return {"mean": None, "deviation": None}
    mean = np.mean([picture.mean for picture in pictures], axis=0)
    square = np.mean([picture.square for picture in pictures], axis=0)
    deviation = np.sqrt(np.maximum(square - mean**2, 0))
    return {"mean": mean.round(5).tolist(), "deviation": deviation.round(5).tolist()}


def _duplicates(
    listing: Listing, pictures: Sequence[Picture], paths: Sequence[str]
) -> list[dict[str, Any]]:
    """Returns the groups of files with the same picture."""
    by_content: dict[bytes, list[int]] = defaultdict(list)
    for index, picture in enumerate(pictures):
        if picture.damage is None:
            by_content[picture.content].append(index)
    return [
        {
            "paths": [paths[index] for index in group],
            "splits": [str(listing.splits[index]) for index in group],
            "labels": [listing.label_of(index) for index in group],
        }
        for group in by_content.values()
        if len(group) > 1
    ]
