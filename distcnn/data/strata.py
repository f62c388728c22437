"""Strata: groups of images of which a draw takes the same fraction."""

import hashlib
from collections.abc import Sequence

import numpy as np

_BINS = 10


def strata_of(labels: np.ndarray) -> np.ndarray:
    """Returns the stratum of each image, int64 `(images,)`.

    That is its class; the rarest of its labels; or where the labels are numbers, the tenth of the
    images that the first of its numbers is in.

    Args:
        labels: int64 `(images,)`, class indices; bool `(images, labels)`; or float32
            `(images, numbers)`.
    """
    if labels.ndim == 1:
        return labels
    if labels.dtype == bool:
        rarest = np.argsort(labels.sum(axis=0), kind="stable")
        has_any = labels.any(axis=1)
        return np.where(has_any, rarest[labels[:, rarest].argmax(axis=1)], labels.shape[1])
    ranks = np.argsort(np.argsort(labels[:, 0], kind="stable"), kind="stable")
    bins = max(1, min(_BINS, len(labels) // 2))
    return ranks * bins // len(labels)


def draw(strata: np.ndarray, names: Sequence[bytes], fraction: float, seed: int) -> np.ndarray:
    """Draws the same fraction of each stratum: of two images or more, at least one and not all.

    Which ones depends on the seed and the names only: a new file moves few of the others.

    Args:
        strata: int64 `(images,)`, the stratum of each image.
        names: Names of the images.
        fraction: Fraction to draw, 0 < fraction < 1.
        seed: Seed of the draw.

    Returns:
        The sorted indices of the images that were drawn, int64.
    """
    key = seed.to_bytes(8, "little")
    ranks = [hashlib.blake2b(name, digest_size=8, key=key).digest() for name in names]
    ranked = np.lexsort((np.frombuffer(b"".join(ranks), ">u8"), strata))
    _, first, sizes = np.unique(strata[ranked], return_index=True, return_counts=True)
    drawn = np.clip(np.rint(fraction * sizes).astype(np.int64), 1, sizes - 1)
    chosen = [
        ranked[start : start + count] for start, count in zip(first, drawn.tolist(), strict=True)
    ]
    return np.sort(np.concatenate(chosen))
