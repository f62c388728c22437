"""Runs commands on a disk of every size from nothing to what they need.

    python -m tests.faults.full_disk [--case NAME] [--points N] [--seed S] [--folder DIR]

The disk is a tmpfs in a mount namespace of this process, which takes root. A command must either
succeed or end with one error; after space is freed, the same command must end with the result of
one that always had enough.
"""

import contextlib
import ctypes
import functools
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from distcnn import records, train
from distcnn.data import tfrecord_writer  # noqa: F401 - imported before the forks
from distcnn.training import trainer  # noqa: F401 - likewise
from tests.faults.campaign import Campaign, Case, Skipped, main
from tests.faults.commands import run, why_no_refusal
from tests.faults.damage import write_images
from tests.runs import flags, small_config

_PAGE, _ENOUGH = 4096, 1 << 28
_NEW_MOUNTS, _RECURSIVE_PRIVATE = 0x20000, 0x4000 | 0x40000  # CLONE_NEWNS, MS_REC | MS_PRIVATE

RUNS: dict[str, dict[str, Any]] = {
    "run": {"train__early_stopping": 1},
    "tensorboard": {"logging__tensorboard": True},
}
"""Configurations by the name of their case."""


def _take_own_mounts() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if (
        os.geteuid() != 0
        or libc.unshare(_NEW_MOUNTS) != 0
        or libc.mount(None, b"/", None, _RECURSIVE_PRIVATE, None) != 0
    ):
        raise Skipped("it takes root and a mount namespace")


@contextlib.contextmanager
def _disk(folder: Path, size: int | None) -> Iterator[Callable[[], None]]:
    """Mounts a disk; yields a function that makes it large."""
    folder.mkdir(exist_ok=True)
    options = f"size={size if size is not None else _ENOUGH}"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)

    def grow() -> None:
        subprocess.run(["mount", "-o", f"remount,size={_ENOUGH}", str(folder)], check=True)

    try:
        yield grow
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _on_every_size(
    campaign: Campaign,
    command: Callable[[Path], Any],
    result: Callable[[Path], Any],
) -> Iterator[tuple[str, str | None]]:
    """Tries a command on disks of growing size.

    Args:
        campaign: The case.
        command: Runs it on a disk.
        result: Returns what must be the same on every disk.
    """
    _take_own_mounts()
    disk = campaign.folder / "disk"
    with _disk(disk, None):
        ended = command(disk)
        assert ended.code == 0, ended.errors
        expected = result(disk)
        pages = sum(-(-p.stat().st_size // _PAGE) for p in disk.rglob("*") if p.is_file())
    # Twice, as a file may be replaced by one that is complete.
    for size in campaign.sample(range(1, 2 * pages)):
        with _disk(disk, size * _PAGE) as grow:
            ended = command(disk)
            reason = None if ended.code == 0 else why_no_refusal(ended)
            if ended.code != 0 and reason is None:
                grow()
                again = command(disk)
                if again.code != 0:
                    reason = f"then, with enough space: {again.errors[-300:]}"
            if reason is None and result(disk) != expected:
                reason = f"other result: {result(disk)}, expected {expected}"
        yield f"{size} pages of {_PAGE} bytes", reason


def training(name: str, campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """A run directory on a small disk."""

    def command(disk: Path) -> Any:
        overrides = {"model__args": {"dropout": 0.0}, "data__synthetic_examples": 120}
        config = small_config(disk / "run", **overrides | RUNS[name])
        if (disk / "run" / "summary.json").exists():
            shutil.rmtree(disk / "run")
        return run(train.main, *flags(config), folder=campaign.folder)

    def result(disk: Path) -> Any:
        summary = json.loads((disk / "run" / "summary.json").read_text())
        return [summary[key] for key in ("weights_sha256", "steps", "val_loss", "test_loss")]

    yield from _on_every_size(campaign, command, result)


def cache(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """The cache of decoded images on a small disk."""
    images = write_images(campaign.folder / "images")

    def command(disk: Path) -> Any:
        os.environ["XDG_CACHE_HOME"] = str(disk / "cache")
        out = campaign.folder / "run"
        shutil.rmtree(out, ignore_errors=True)
        overrides = {
            "data__name": "folder",
            "data__dir": str(images),
            "data__cache": "disk",
            "data__image_size": 16,
            "data__validation": "none",
            "train__batch_size": 4,
            "data__augment__crop": 0,
        }
        return run(train.main, *flags(small_config(out, **overrides)), folder=campaign.folder)

    def result(_: Path) -> Any:
        summary = json.loads((campaign.folder / "run" / "summary.json").read_text())
        return summary["weights_sha256"]

    yield from _on_every_size(campaign, command, result)


def shards(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Record shards on a small disk."""
    images = write_images(campaign.folder / "images")

    def command(disk: Path) -> Any:
        shutil.rmtree(disk / "records", ignore_errors=True)
        arguments = ("--data.name=folder", f"--data.dir={images}", f"--out={disk / 'records'}")
        ended = run(records.main, *arguments, "--shards=2", folder=campaign.folder)
        left = [path.name for path in disk.iterdir() if path.name != "records"]
        assert not left, left
        return ended

    def result(disk: Path) -> Any:
        return {path.name: path.read_bytes().hex() for path in (disk / "records").iterdir()}

    yield from _on_every_size(campaign, command, result)


CASES: dict[str, Case] = {
    **{name: functools.partial(training, name) for name in RUNS},
    "cache": cache,
    "records": shards,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
