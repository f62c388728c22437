"""Damages the files that distcnn wrote, and reads them back.

    python -m tests.faults.damage [--case NAME] [--points N] [--seed S] [--folder DIR]

Every bit of a small file is flipped, one at a time; a large one gets 400 random bit flips,
overwritten bytes and truncations. What is read must be exactly what was written, or be refused by
an error that names the file; a CIFAR batch, whose format has no checksum, may be read with a
warning instead.
"""

import contextlib
import dataclasses
import functools
import json
import logging
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from PIL import Image

from distcnn.config import DataConfig
from distcnn.config.recipe import settings_of_run
from distcnn.data import cifar
from distcnn.data.cache_location import cache_folder
from distcnn.data.dataset import load_dataset
from distcnn.data.folder import open_folder
from distcnn.data.sources import open_source
from distcnn.data.tfrecord_index import read_index
from distcnn.data.tfrecord_writer import write_records
from distcnn.errors import DistcnnError
from distcnn.runtime.files import file_digest
from distcnn.storage.checkpoint import Checkpoints, Progress, read_checkpoint, write_checkpoint
from distcnn.storage.model_file import load_model, read_description, save_model
from distcnn.storage.model_metadata import ModelMetadata
from distcnn.storage.run_directory import RunDirectory
from tests.faults.campaign import Campaign, Case, main
from tests.runs import small_config
from tests.tiny import plain

_RANDOM_FAULTS = 400
_SECONDS = 60
"""The longest that reading a damaged file may take."""

Change = Callable[[bytes], bytes]


@dataclass(frozen=True)
class Fault:
    """One change to a file."""

    name: str
    change: Change


def flip(bit: int) -> Fault:
    """Flips one bit of a file."""

    def change(content: bytes) -> bytes:
        changed = bytearray(content)
        changed[bit // 8] ^= 1 << bit % 8
        return bytes(changed)

    return Fault(f"bit {bit % 8} of byte {bit // 8} flipped", change)


def overwrite(start: int, new: bytes) -> Fault:
    """Overwrites some bytes."""
    name = f"bytes from {start} on overwritten by {new.hex()}"
    return Fault(name, lambda content: content[:start] + new + content[start + len(new) :])


def cut(length: int) -> Fault:
    """Keeps only the beginning of a file."""
    return Fault(f"cut to {length} bytes", lambda content: content[:length])


def every_bit(campaign: Campaign, content: bytes) -> list[Fault]:
    """Returns a flip of each bit, and a cut at each byte."""
    size = len(content)
    faults = campaign.sample(range(9 * size))
    return [flip(f) if f < 8 * size else cut(f - 8 * size) for f in faults]


def at_random(campaign: Campaign, content: bytes) -> list[Fault]:
    """Returns random faults: two flips in four, an overwrite, a cut."""
    random, size = campaign.random, len(content)
    return [
        cut(random.randrange(size))
        if number % 4 == 3
        else overwrite(random.randrange(size), random.randbytes(random.choice((1, 4, 600))))
        if number % 4 == 2
        else flip(random.randrange(8 * size))
        for number in range(campaign.number(_RANDOM_FAULTS))
    ]


def damaged(
    path: Path,
    faults: list[Fault],
    read: Callable[[], Any],
    *,
    same: Callable[[Any, Any], bool] = lambda expected, found: expected == found,
    names: str | None = None,
) -> Iterator[tuple[str, str | None]]:
    """Applies faults to a file, one at a time, and reads it.

    Args:
        path: The file.
        faults: The faults.
        read: Returns what the file says.
        same: Whether two results of `read` are the same.
        names: What an error must contain; the name of the file by default.
    """
    content = path.read_bytes()
    expected = read()
    for fault in faults:
        path.unlink()
        path.write_bytes(fault.change(content))
        yield f"{path.name}: {fault.name}", _outcome(read, expected, same, names or path.name)
    path.write_bytes(content)


def _outcome(
    read: Callable[[], Any], expected: Any, same: Callable[[Any, Any], bool], names: str
) -> str | None:
    try:
        with _time_limit():
            found = read()
    except DistcnnError as error:
        text = str(error)
        if names not in text or "\n" in text:
            return f"refused by a message that does not name it on one line: {text!r}"
        return None
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:200]!r}"
    return None if same(expected, found) else f"other content: {str(found)[:200]}"


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"it took more than {_SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)


def same_arrays(expected: Any, found: Any) -> bool:
    """Returns whether two nested structures of arrays and plain values are the same."""
    pairs = tf.nest.flatten(expected), tf.nest.flatten(found)
    return len(pairs[0]) == len(pairs[1]) and all(
        np.array_equal(a, b) and np.asarray(a).dtype == np.asarray(b).dtype
        for a, b in zip(*pairs, strict=True)
    )


def run_configuration(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """`config.yaml`, from which the images of a run are known."""
    run = campaign.folder
    _begin_run(run)
    path = run / "config.yaml"
    yield from damaged(path, every_bit(campaign, path.read_bytes()), lambda: settings_of_run(run))


def run_environment(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """`environment.json`, by which a resumed run finds the same images; others are refused."""
    run = campaign.folder / "run"
    environment = _begin_run(run)
    path = run / "environment.json"

    def resume() -> str:
        directory = RunDirectory(run, begun=True)
        directory._require_same_course(environment)
        return "resumed"

    faults = every_bit(campaign, path.read_bytes())
    yield from damaged(path, faults, resume, names=run.name)


def _begin_run(run: Path) -> dict[str, Any]:
    resolved = {
        "model": "tiny",
        "training_images": 230,
        "images_hash": "0123456789abcdef" * 4,
        "global_batch_size": 32,
    }
    environment = {"distcnn": "1", "host": "a", "command": ["train"], "resolved": resolved}
    config = small_config(run)
    directory = RunDirectory(run, begun=False)
    directory.create(config, environment)
    directory.close()
    return environment


def metrics(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """`metrics.jsonl`, whose rows a resumed run keeps."""
    path = campaign.folder / "metrics.jsonl"
    checkpoints = Checkpoints(campaign.folder / "checkpoints", keep=1)
    rows = [
        {"step": step, "epoch": 1, "loss": 1 / step, "val_loss": 0.25 if step == 3 else None}
        for step in (1, 2, 3)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    checkpoints.save({"a": np.zeros(3)}, Progress(step=3))
    directory = RunDirectory(campaign.folder, begun=True)
    faults = every_bit(campaign, path.read_bytes())
    yield from damaged(path, faults, lambda: directory.cut_metrics(3))


def _write_checkpoint(path: Path) -> None:
    random = np.random.default_rng(0)
    arrays = {
        f"weights/{number:04d}": random.random((8, number + 1), np.float32) for number in range(6)
    }
    write_checkpoint(path, arrays, Progress(step=int(path.stem[5:]), best_step=1, images=32))


def checksum(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """The `.sha256` of a checkpoint."""
    path = campaign.folder / "step-00000007.npz"
    _write_checkpoint(path)
    file = path.with_name(f"{path.name}.sha256")
    faults = every_bit(campaign, file.read_bytes())
    yield from damaged(
        file, faults, lambda: read_checkpoint(path), same=same_arrays, names=path.name
    )


def checkpoint(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """A checkpoint."""
    path = campaign.folder / "step-00000007.npz"
    _write_checkpoint(path)
    faults = at_random(campaign, path.read_bytes())
    yield from damaged(path, faults, lambda: read_checkpoint(path), same=same_arrays)


def older_checkpoint(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """An older checkpoint, which must not keep the run from saving the next."""
    folder = campaign.folder / "checkpoints"
    folder.mkdir()
    old = folder / "step-00000007.npz"
    _write_checkpoint(folder / "step-00000001.npz")
    _write_checkpoint(old)

    def save() -> list[str]:
        path = Checkpoints(folder, keep=2).save({"a": np.zeros(3)}, Progress(step=9, best_step=1))
        read_checkpoint(path)
        return [path.name for path in Checkpoints(folder, keep=2).newest_first()]

    yield from damaged(old, at_random(campaign, old.read_bytes()), save)


def model_file(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """`model.keras`: weights, description and metadata."""
    keras.utils.set_random_seed(1)
    path = campaign.folder / "model.keras"
    save_model(path, plain((16, 16, 3), 4), ModelMetadata(("a", "b", "c", "d"), "signed", True))

    def read() -> Any:
        model, metadata = load_model(path)
        return [
            metadata and dataclasses.asdict(metadata),
            json.dumps([model.get_config(), read_description(path)["config"]], sort_keys=True),
            model.get_weights(),
        ]

    yield from damaged(path, at_random(campaign, path.read_bytes()), read, same=same_arrays)


def write_images(folder: Path) -> Path:
    """Writes a folder of small images, 6 for training and 2 for testing in each of two classes."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("test", 2)):
        for name in ("cat", "dog"):
            (folder / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(0, 256, (9, 8, 3), np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{number}.png")
    return folder


def _content(config: DataConfig) -> Any:
    source = open_source(config)
    dataset = load_dataset(config, source, (8, 8, 3), seed=0)
    splits = {name: getattr(dataset, name) for name in ("train", "test")}
    return [
        list(dataset.classes),
        {
            name: [split.labels, split.gather(tf.range(len(split), dtype=tf.int64)).numpy()]
            for name, split in splits.items()
        },
    ]


def cache(campaign: Campaign, suffix: str) -> Iterator[tuple[str, str | None]]:
    """The cache of decoded images, which is decoded anew if it is damaged."""
    os.environ["XDG_CACHE_HOME"] = str(campaign.folder / "cache")
    folder = write_images(campaign.folder / "images")
    config = DataConfig(name="folder", dir=str(folder), cache="disk", validation="none")
    _content(config)
    path = max(cache_folder().glob(f"*{suffix}"), key=lambda p: p.stat().st_size)
    logging.disable(logging.WARNING)
    faults = at_random(campaign, path.read_bytes())
    yield from damaged(path, faults, lambda: _content(config), same=same_arrays)


def cifar_batch(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """A pickled batch; as its format has no checksum, it may be read with a warning."""
    layout = cifar.SETS["cifar10"].layouts[0]
    folder = campaign.folder / layout.folder
    folder.mkdir()
    random = np.random.default_rng(0)
    for name in layout.train + layout.test:
        data = random.integers(0, 256, (20, 3072), np.uint8)
        batch = {b"data": data, b"labels": random.integers(0, 10, 20).tolist()}
        (folder / name).write_bytes(pickle.dumps(batch, protocol=2))
    sums = {name: file_digest(folder / name, "md5") for name in layout.md5}
    cifar.SETS["cifar10"] = dataclasses.replace(
        cifar.SETS["cifar10"],
        batch_images=(20, 20),
        layouts=(dataclasses.replace(layout, md5=sums),),
    )
    config = DataConfig(name="cifar10", dir=str(campaign.folder))
    warnings: list[str] = []
    log = logging.getLogger("distcnn")
    log.propagate = False

    def note(record: logging.LogRecord) -> bool:
        warnings.append(record.getMessage())
        return False

    log.addFilter(note)

    def read() -> Any:
        warnings.clear()
        source = cifar.open_cifar(config)
        if any("data_batch_2 in" in warning and "differ" in warning for warning in warnings):
            raise DistcnnError("data_batch_2 is warned of")
        assert source.train is not None
        return [source.train.labels, source.train.gather(tf.range(100, dtype=tf.int64)).numpy()]

    path = folder / "data_batch_2"
    yield from damaged(path, at_random(campaign, path.read_bytes()), read, same=same_arrays)


def _write_records(campaign: Campaign) -> DataConfig:
    folder = write_images(campaign.folder / "images")
    records = campaign.folder / "records"
    write_records(open_folder(DataConfig(name="folder", dir=str(folder))), records, 2)
    return DataConfig(name="tfrecord", dir=str(records), cache="memory", validation="none")


def records_index(campaign: Campaign) -> Iterator[tuple[str, str | None]]:
    """`index.json` of record shards."""
    folder = Path(str(_write_records(campaign).dir))
    path = folder / "index.json"
    faults = every_bit(campaign, path.read_bytes())
    yield from damaged(path, faults, lambda: read_index(folder))


def records(campaign: Campaign, name: str) -> Iterator[tuple[str, str | None]]:
    """A shard, or the offsets of a split."""
    config = _write_records(campaign)
    path = Path(str(config.dir), name)
    faults = at_random(campaign, path.read_bytes())
    yield from damaged(path, faults, lambda: _content(config), same=same_arrays)


CASES: dict[str, Case] = {
    "config.yaml": run_configuration,
    "environment.json": run_environment,
    "metrics.jsonl": metrics,
    "checkpoint.sha256": checksum,
    "checkpoint": checkpoint,
    "older_checkpoint": older_checkpoint,
    "model.keras": model_file,
    "cache.npy": functools.partial(cache, suffix=".npy"),
    "cache.json": functools.partial(cache, suffix=".json"),
    "cifar_batch": cifar_batch,
    "index.json": records_index,
    "shard": functools.partial(records, name="train-00001-of-00002.tfrecord"),
    "offsets": functools.partial(records, name="train.index.npz"),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, CASES))
