"""Gives commands the files that somebody made to harm them.

    python -m tests.faults.hostile [--case NAME] [--points N] [--seed S] [--folder DIR]

Decompression bombs, FIFOs, endless devices, programs in pickles and models, absurd sizes, names
that a terminal obeys. A command must end with one error, in bounded time and memory, without
running anything; a harmless file beside a hostile one must still be used.
"""

import functools
import os
import pickle
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from distcnn.data.tfrecord_writer import write_records
from distcnn.inference import prediction  # noqa: F401 - imported before the forks
from distcnn.predict import main as predict
from distcnn.runtime.files import file_digest
from distcnn.train import main as train
from distcnn.training.trainer import Trainer
from tests.faults.campaign import Campaign, Case, in_fork, main
from tests.faults.commands import Ended, run, why_no_refusal, why_unprintable
from tests.faults.damage import write_images
from tests.faults.hostile_files import (
    CHECKPOINTS,
    ESCAPE,
    IMAGES,
    MODELS,
    RECIPES,
    Program,
    png,
    sparse,
)
from tests.runs import flags, small_config


def _model(folder: Path) -> Path:
    """Trains a small run in a fork, so that TensorFlow does not start here."""
    config = small_config(folder / "run", train__epochs=1)
    assert in_fork(lambda: bool(Trainer(config).fit()), folder / "trained") == 0
    return folder / "run"


def images(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Classifies a folder with a hostile and a good image."""
    model = _model(campaign.folder)
    for name in campaign.sample(list(IMAGES)):
        folder = campaign.folder / "images"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        (folder / "good.png").write_bytes(png(8, 8))
        path = folder / f"bad {ESCAPE.replace('/', '')}.png"
        IMAGES[name](path)
        ended = run(predict, str(model), str(folder), folder=campaign.folder)
        reason = why_no_refusal(ended, "bad ")
        if reason is None:
            ended = run(predict, str(model), str(folder), "--on_error=skip", folder=campaign.folder)
            if ended.code != 0 or "good.png" not in ended.output:
                reason = f"the good image was not classified: {ended.errors[-300:]}"
            reason = reason or why_unprintable(ended)
        yield name, reason


def recipes(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Trains by a hostile recipe."""
    for number, name in enumerate(campaign.sample(list(RECIPES))):
        path = campaign.folder / f"recipe-{number}.yaml"
        RECIPES[name](path)
        os.chdir(campaign.folder)
        ended = run(train, f"--recipe={path}", folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


def _why_owned(campaign: Campaign) -> str | None:
    return "it ran what the file said" if (campaign.folder / "owned").exists() else None


def checkpoints(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Starts from a hostile checkpoint with a correct checksum."""
    for number, name in enumerate(campaign.sample([*CHECKPOINTS, "a checksum from /dev/zero"])):
        path = campaign.folder / f"step-{number:08d}.npz"
        checksum = path.with_name(f"{path.name}.sha256")
        if name in CHECKPOINTS:
            CHECKPOINTS[name](path)
            digest = file_digest(path) if path.is_file() else "0" * 64
            checksum.write_text(f"{digest}  {path.name}\n")
        else:
            path.touch()
            checksum.symlink_to("/dev/zero")
        os.chdir(campaign.folder)
        out = campaign.folder / f"run-{number}"
        config = small_config(out, checkpoint__resume=str(path))
        ended = run(train, *flags(config), folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


def models(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Classifies an image by a hostile model."""
    (campaign.folder / "good.png").write_bytes(png(8, 8))
    for number, name in enumerate(campaign.sample(list(MODELS))):
        path = campaign.folder / f"model-{number}.keras"
        MODELS[name](path)
        os.chdir(campaign.folder)
        ended = run(predict, str(path), "good.png", folder=campaign.folder)
        yield name, why_no_refusal(ended, path.name) or _why_owned(campaign)


def _begin(folder: Path) -> None:
    """Writes record shards, and CIFAR batches."""
    from distcnn.config import DataConfig
    from distcnn.data.folder import open_folder

    images = write_images(folder / "images")
    write_records(open_folder(DataConfig(name="folder", dir=str(images))), folder / "records", 1)


DATA: dict[str, tuple[str, str, Callable[[Path], Any]]] = {
    "an index that is a FIFO": ("tfrecord", "index.json", os.mkfifo),
    "an index from /dev/zero": ("tfrecord", "index.json", lambda p: p.symlink_to("/dev/zero")),
    "a deep index": ("tfrecord", "index.json", lambda p: p.write_text("[" * 10**6)),
    "a shard that is a FIFO": ("tfrecord", "test-00000-of-00001.tfrecord", os.mkfifo),
    "a shard from /dev/zero": (
        "tfrecord",
        "test-00000-of-00001.tfrecord",
        lambda p: p.symlink_to("/dev/zero"),
    ),
    "offsets that are a FIFO": ("tfrecord", "train.index.npz", os.mkfifo),
    "a batch with a program": (
        "cifar10",
        "data_batch_3",
        lambda p: p.write_bytes(pickle.dumps(Program(), protocol=2)),
    ),
    "a batch that is a FIFO": ("cifar10", "data_batch_3", os.mkfifo),
    "a batch from /dev/zero": ("cifar10", "data_batch_3", lambda p: p.symlink_to("/dev/zero")),
    "a sparse batch of 1 TB": (
        "cifar10",
        "data_batch_3",
        functools.partial(sparse, size=10**12),
    ),
    "an archive from /dev/zero": (
        "archive",
        "cifar-10-python.tar.gz",
        lambda p: p.symlink_to("/dev/zero"),
    ),
    "a class that a terminal obeys": (
        "folder",
        f"train/{ESCAPE}",
        lambda p: p.mkdir(),
    ),
    "an image that is a FIFO": ("folder", "train/cat/x.png", os.mkfifo),
    "a folder that contains itself": ("folder", "train/cat/x", lambda p: p.symlink_to(p.parent)),
}
"""The data set, the file that is replaced, and what writes a hostile one."""


def data(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Trains on hostile images."""
    assert in_fork(lambda: _begin(campaign.folder), campaign.folder / "begun") == 0
    batch = {b"data": np.zeros((10_000, 3072), np.uint8), b"labels": [0] * 10_000}
    batches = campaign.folder / "batches" / "cifar-10-batches-py"
    batches.mkdir(parents=True)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        (batches / name).write_bytes(pickle.dumps(batch, protocol=2))
    archive = campaign.folder / "archive"
    archive.mkdir()
    places = {
        "tfrecord": campaign.folder / "records",
        "cifar10": batches,
        "archive": archive,
        "folder": campaign.folder / "images",
    }
    os.chdir(campaign.folder)
    for number, name in enumerate(campaign.sample(list(DATA))):
        kind, file, write = DATA[name]
        path = places[kind] / file
        kept = campaign.folder / "kept"
        if path.exists():
            path.rename(kept)
        write(path)
        out = campaign.folder / f"run-{number}"
        data_name = "cifar10" if kind == "archive" else kind
        overrides = {"data__name": data_name, "data__dir": str(places[kind])}
        config = small_config(out, **overrides, data__augment__crop=0)
        ended = run(train, *flags(config), folder=campaign.folder)
        yield name, why_no_refusal(ended) or _why_owned(campaign)
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        if kept.exists():
            kept.rename(path)


RUN_FILES: dict[str, tuple[str, Callable[[Path], Any]]] = {
    "config.yaml is a FIFO": ("config.yaml", os.mkfifo),
    "environment.json is a FIFO": ("environment.json", os.mkfifo),
    "environment.json is deep": ("environment.json", lambda p: p.write_text("[" * 10**6)),
    "metrics.jsonl is a FIFO": ("metrics.jsonl", os.mkfifo),
    "metrics.jsonl is a folder": ("metrics.jsonl", lambda p: p.mkdir()),
    "checkpoints is a file": ("checkpoints", lambda p: p.touch()),
    ".lock is a folder": (".lock", lambda p: p.mkdir()),
    "summary.json is a FIFO": ("summary.json", os.mkfifo),
    "model.keras is a folder": ("model.keras", lambda p: p.mkdir()),
}
"""The file of an unfinished run that is replaced, and what writes a hostile one."""


def run_directory(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """Continues a run in whose directory a file was replaced."""
    begun = campaign.folder / "begun"

    def command(out: Path) -> Ended:
        return run(train, *flags(small_config(out)), folder=campaign.folder)

    assert command(begun).code == 0
    for name in ("summary.json", "model.keras"):
        (begun / name).unlink()
    for number, name in enumerate(campaign.sample(list(RUN_FILES))):
        out = campaign.folder / f"run-{number}"
        # The configuration names its run directory, which may differ.
        shutil.copytree(begun, out)
        path = out / RUN_FILES[name][0]
        if path.is_dir():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        RUN_FILES[name][1](path)
        yield name, why_no_refusal(command(out), out.name)


CASES: dict[str, Case] = {
    "images": images,
    "recipes": recipes,
    "checkpoints": checkpoints,
    "models": models,
    "data": data,
    "run_directory": run_directory,
}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
