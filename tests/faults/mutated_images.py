"""Mutates images, and decodes each in a process of bounded memory.

    python -m tests.faults.mutated_images [--case NAME] [--points N] [--seed S] [--folder DIR]

Each format is a case of 300 mutated images: bits flipped, cut, parts of the header overwritten by
extreme numbers, parts repeated. Each must give pixels or a reason on one line, and neither end the
process nor take more memory than the largest image that is allowed.
"""

import functools
import io
import json
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import tensorflow as tf
from PIL import Image

from distcnn.data.decode import failure_reason
from distcnn.data.file_list import FileList
from distcnn.data.folder import FolderSplit
from tests.faults.campaign import Campaign, Case, in_fork, main

_IMAGES = 300
_SHAPE = (16, 16, 3)
_SECONDS_PER_IMAGE = 60
_MOST_BYTES = 3 << 30
"""The most memory of a process beyond that at its start: the largest image, twice, and a rest."""

FORMATS: dict[str, dict[str, Any]] = {
    "JPEG": {"quality": 80},
    "progressive_JPEG": {"format": "JPEG", "progressive": True},
    "PNG": {},
    "interlaced_GIF": {"format": "GIF", "interlace": 1},
    "GIF": {},
    "BMP": {},
    "WebP": {"quality": 80},
    "lossless_WebP": {"format": "WEBP", "lossless": True},
    "TIFF": {"compression": "tiff_lzw"},
    "AVIF": {"quality": 70},
}
"""How to save an image, by the name of the case."""

_EXTREMES = (
    *(b"\x00\x00", b"\xff\xff", b"\x7f\xff", b"\xff\x7f", b"\x00\x00\x00\x00", b"\xff\xff\xff\xff"),
    *(b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f", b"\x80\x00\x00\x00", b"\x00\x00\x40\x00"),
)


def mutated(content: bytes, random: Random) -> tuple[str, bytes]:
    """Returns one to three mutations of a file, and what they are."""
    names = []
    for _ in range(random.choice((1, 1, 2, 3))):
        kind = random.choice(("flip", "flip", "header", "header", "cut", "repeat"))
        at = random.randrange(max(1, len(content)))
        if kind == "header":
            at %= 64
            new = random.choice(_EXTREMES)
            content = content[:at] + new + content[at + len(new) :]
            names.append(f"{new.hex()} at byte {at}")
        elif kind == "cut":
            content = content[:at]
            names.append(f"cut to {at} bytes")
        elif kind == "repeat":
            length = random.randrange(1, 200)
            content = content[: at + length] + content[at:]
            names.append(f"{length} bytes from {at} on repeated")
        elif content:
            bit = random.randrange(8)
            content = content[:at] + bytes([content[at] ^ 1 << bit]) + content[at + 1 :]
            names.append(f"bit {bit} of byte {at} flipped")
    return ", ".join(names), content


def image(name: str) -> bytes:
    """Returns a valid image."""
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    smooth = Image.fromarray(pixels).resize((48, 40))
    options = {"format": name} | FORMATS[name]
    buffer = io.BytesIO()
    smooth.save(buffer, **options)
    return buffer.getvalue()


def decode(paths: list[Path], done: Path) -> None:
    """Decodes images one by one, and writes a line about each to a file."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    # Threads reserve address space that they do not use.
    limit = pages * resource.getpagesize() + _MOST_BYTES + (4 << 30)
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    split = FolderSplit(FileList.of(paths), np.zeros(len(paths), np.int64)).resized(_SHAPE)
    gather = tf.function(split.gather, input_signature=[tf.TensorSpec([1], tf.int64)])
    before = _peak_bytes()
    with done.open("a", encoding="utf-8") as file:
        for index, path in enumerate(paths):
            signal.alarm(_SECONDS_PER_IMAGE)
            reason = _decode_one(gather, index, path)
            peak = _peak_bytes() - before
            if peak > _MOST_BYTES:
                reason = f"it took {peak / 1e9:.1f} GB"
            file.write(json.dumps(reason) + "\n")
            file.flush()


def _peak_bytes() -> int:
    """Returns the most memory that was used since the last call."""
    status = Path("/proc/self/status").read_text()
    Path("/proc/self/clear_refs").write_text("5")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def _decode_one(gather: Callable[[tf.Tensor], tf.Tensor], index: int, path: Path) -> str | None:
    """Returns what is wrong with how an image is decoded or refused, or None."""
    try:
        pixels = gather(tf.constant([index], tf.int64)).numpy()
    except tf.errors.OpError as error:
        text = failure_reason(error)
        is_clear = text.strip() and "\n" not in text and len(text) < 1000
        return None if is_clear else f"an unclear reason: {text!r}"
    except BaseException as error:
        return f"{path.name}: {type(error).__name__}: {error}"
    return None if pixels.shape == (1, *_SHAPE) else f"pixels of shape {pixels.shape}"


def one_format(name: str, campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Mutates images of one format."""
    whole = image(name)
    paths, names = [], []
    for number in range(campaign.number(_IMAGES)):
        mutations, content = mutated(whole, campaign.random)
        paths.append(campaign.folder / f"{number}.{FORMATS[name].get('format', name).lower()}")
        paths[-1].write_bytes(content)
        names.append(f"{paths[-1].name}: {mutations}")
    done = campaign.folder / "done.txt"
    done.touch()
    reasons: list[str | None] = []
    while len(reasons) < len(paths):
        attempt = functools.partial(decode, paths[len(reasons) :], done)
        status = in_fork(attempt, campaign.folder / "unused", timeout=0)
        reasons = [json.loads(line) for line in done.read_text().splitlines()]
        if len(reasons) < len(paths):
            reasons.append(f"the process ended with {status}")
            with done.open("a") as file:
                file.write(json.dumps(reasons[-1]) + "\n")
    yield from zip(names, reasons, strict=True)


CASES: dict[str, Case] = {name: functools.partial(one_format, name) for name in FORMATS}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
